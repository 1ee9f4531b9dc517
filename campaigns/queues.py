"""Queue and task names, and the Celery app that Settings describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from celery import Celery, signals
from kombu import Exchange, Queue

from campaigns.broker import check_broker, is_redis
from campaigns.publishing import (
    CONTROL_QUEUE,
    DELIVER_TASK,
    PRIORITY_STEPS,
    PRODUCE_TASK,
    SWEEP_TASK,
    QueuedDelivery,
    nudge,
    publish_deliveries,
    queue_name,
)

if TYPE_CHECKING:
    from campaigns.settings import Settings

__all__ = [
    "CONTROL_QUEUE",
    "DELIVER_TASK",
    "PRODUCE_TASK",
    "SWEEP_TASK",
    "QueuedDelivery",
    "TaskResult",
    "WorkerConcurrency",
    "check_broker",
    "create_app",
    "nudge",
    "publish_deliveries",
    "queue_name",
]

VISIBILITY_SECONDS = 30
"""With our own transport, which renews what a living worker holds: how long a dead worker's messages wait."""

STOCK_VISIBILITY_SECONDS = 900
"""With kombu's own, which renews nothing: longer than a mail may wait at its dot."""

PRODUCE_SECONDS = 2.0
SWEEP_SECONDS = 5.0
TASKS_PER_CONNECTION = 2
"""Tasks under way for each connection: one that waits, at its dot or for its claim, idles none."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What became of a task, for its event: shown by Flower as it is, so never with an address in it."""

    state: Literal["SUCCESS", "RETRY", "FAILURE", "IGNORED"]
    result: str


class WorkerConcurrency(int):
    """Not chosen by anybody: a worker replaces it by what its own queues' servers need.

    `connections` maps the queue to the connections that one process may hold to its server.
    """

    connections: dict[str, int]

    @classmethod
    def of(cls, settings: Settings) -> WorkerConcurrency:
        connections = {queue_name(server.name): server.connections for server in settings.servers}
        value = cls(_tasks(sum(connections.values())))
        value.connections = connections
        return value

    def for_queues(self, queues: list[str]) -> int:
        """Tasks at a time for a worker that reads these queues."""
        return _tasks(sum(self.connections.get(name, 0) for name in queues))


@signals.worker_init.connect(weak=False)
def _follow_the_connections(sender: Any, **_: Any) -> None:
    """-c, where given, has put a plain number there."""
    if isinstance(sender.concurrency, WorkerConcurrency):
        sender.concurrency = sender.concurrency.for_queues(list(sender.app.amqp.queues.consume_from))


def _tasks(connections: int) -> int:
    return TASKS_PER_CONNECTION * connections + 4


def create_app(settings: Settings, *, bulk_transport: bool = True) -> Celery:
    """The Celery app: queues, broker, worker pool, schedule. Connects to nothing.

    `bulk_transport=False` has workers on Redis consume through kombu's own transport.
    """
    app = Celery("campaigns", set_as_current=False, events="workers.events:Events")
    app.conf.update(
        _broker_options(settings, bulk_transport=bulk_transport),
        **_queue_options(settings),
        **_task_options(),
        **_worker_options(settings),
        beat_schedule=_schedule(),
        campaigns_bulk_transport=bulk_transport and is_redis(settings.broker_url),
    )
    return app


def _broker_options(settings: Settings, *, bulk_transport: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "broker_url": settings.broker_url,
        "broker_connection_timeout": 2,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_pool_limit": 10,
    }
    if is_redis(settings.broker_url):
        options["broker_transport_options"] = _redis_options(bulk_transport=bulk_transport)
    else:
        options["broker_transport_options"] = {
            "confirm_publish": True,
            "read_timeout": 10,
            "write_timeout": 10,
        }
    if settings.broker_url.startswith("rediss") and "ssl_cert_reqs" not in settings.broker_url:
        options["broker_use_ssl"] = {"ssl_cert_reqs": "required"}
    return options


def _redis_options(*, bulk_transport: bool) -> dict[str, Any]:
    return {
        "priority_steps": PRIORITY_STEPS,
        "queue_order_strategy": "round_robin",
        "visibility_timeout": VISIBILITY_SECONDS if bulk_transport else STOCK_VISIBILITY_SECONDS,
        # Look for the messages of dead workers every 5 s; kombu's default comes to every 100 s.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 30,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "retry_on_timeout": False,
        "max_connections": 50,
    }


def _queue_options(settings: Settings) -> dict[str, Any]:
    names = [*(queue_name(server.name) for server in settings.servers), CONTROL_QUEUE]
    exchange = Exchange("campaigns", type="direct")
    return {
        "task_queues": [_queue(name, exchange) for name in names],
        "task_default_queue": CONTROL_QUEUE,
        "task_default_routing_key": CONTROL_QUEUE,
        # Declared, and bound, for RabbitMQ; Celery publishes to direct exchanges through the default one,
        # whose routes cannot be lost in a flush of Redis.
        "task_default_exchange": exchange.name,
        "task_default_exchange_type": "direct",
        "task_create_missing_queues": False,
    }


def _queue(name: str, exchange: Exchange) -> Queue:
    return Queue(name, exchange, routing_key=name, queue_arguments={"x-max-priority": 10})


def _task_options() -> dict[str, Any]:
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_backend": "disabled",
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "task_acks_late": True,
        "task_acks_on_failure_or_timeout": True,
        "task_reject_on_worker_lost": True,
        "task_send_sent_event": False,
        "task_publish_retry": False,
        "timezone": "UTC",
        "enable_utc": True,
    }


def _worker_options(settings: Settings) -> dict[str, Any]:
    return {
        "worker_pool": "workers.asyncio_pool:AsyncioPool",
        "worker_consumer": "workers.consumer:Consumer",
        "worker_concurrency": WorkerConcurrency.of(settings),
        "worker_prefetch_multiplier": 2,
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_detect_quorum_queues": False,
        "worker_send_task_events": True,
        "worker_redirect_stdouts": False,
        "worker_max_tasks_per_child": None,
    }


def _schedule() -> dict[str, dict[str, Any]]:
    """For those who run beat; every worker does the same work by itself."""
    return {
        task: {
            "task": task,
            "schedule": seconds,
            "options": {"queue": CONTROL_QUEUE, "expires": 4 * seconds, "priority": 0},
        }
        for task, seconds in ((PRODUCE_TASK, PRODUCE_SECONDS), (SWEEP_TASK, SWEEP_SECONDS))
    }
