"""Publishing: one task a delivery, many of them in one round trip.

A message is what Celery's own `apply_async` would make (task message protocol 2, JSON), but its envelope is
compiled once for each group of alike deliveries, and on Redis a whole batch is pushed in one pipeline.
Everything goes to the default exchange: after a flush of Redis, kombu drops what goes to a named one.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import redis
from amqp.exceptions import MessageNacked
from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import OperationalError

from campaigns.broker import address, broker_errors, is_redis, redis_client
from campaigns.errors import BrokerUnavailable

__all__ = [
    "CONTROL_QUEUE",
    "DELIVER_TASK",
    "PRIORITY_STEPS",
    "PRODUCE_TASK",
    "SWEEP_TASK",
    "QueuedDelivery",
    "is_urgent",
    "nudge",
    "publish_deliveries",
    "queue_keys",
    "queue_name",
    "ready_count",
]

log = logging.getLogger(__name__)

CONTROL_QUEUE = "campaigns"
DELIVER_TASK = "campaigns.deliver"
PRODUCE_TASK = "campaigns.produce"
SWEEP_TASK = "campaigns.sweep"
PRIORITY_STEPS = [0, 3, 6, 9]
"""kombu keeps a Redis list for each; 0 is taken first."""

_URGENT, _ORDINARY = 0, 3
_SEPARATOR = "\x06\x16"
_BATCH = 1000
_NOT_FOUND = "404"
"""AMQP's reply to the passive declaration of a queue that is not there."""
_SLUG = re.compile(r"[^A-Za-z0-9_-]+")


class QueuedDelivery(Protocol):
    """What the ledger says of a delivery that waits in a server's queue."""

    @property
    def delivery_id(self) -> int: ...
    @property
    def campaign_name(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def server(self) -> str: ...


def queue_name(server: str) -> str:
    """The queue that the workers of a server read."""
    return f"smtp.{server}"


def queue_keys(queue: str) -> list[str]:
    """The Redis lists that make up a queue, the most urgent first."""
    return [_key(queue, priority) for priority in PRIORITY_STEPS]


def publish_deliveries(app: Celery, deliveries: Sequence[QueuedDelivery], *, ahead: bool = False) -> None:
    """Publish one task for each. Raises BrokerUnavailable, within seconds, when some may not be published.

    What was not published is found again by the sweep; what is published twice is claimed once. `ahead`: they
    have waited in another queue already, so on Redis they go before what waits in this one.
    """
    if is_redis(app.conf.broker_url):
        _push(app, _grouped(deliveries), ahead=ahead)
    else:
        _publish(app, deliveries)


def ready_count(app: Celery, server: str) -> int:
    """How many messages the server's queue holds for its readers, as any broker tells; 0 without a queue.

    What a reader has in hand is not among them. Raises BrokerUnavailable.
    """
    with _connection(app) as connection:
        try:
            declared = connection.default_channel.queue_declare(queue_name(server), passive=True)
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", None)) != _NOT_FOUND:
                raise
            return 0
        return int(declared.message_count)


def nudge(app: Celery) -> bool:
    """Ask the workers to look for due deliveries now. Best effort: False if the broker is not there."""
    try:
        if is_redis(app.conf.broker_url):
            make = envelope(PRODUCE_TASK, CONTROL_QUEUE, _URGENT)
            _push(app, {_key(CONTROL_QUEUE, _URGENT): [make(f"nudge.{uuid.uuid4()}", {})]})
        else:
            with _connection(app) as connection, _producer(app, connection, CONTROL_QUEUE) as producer:
                message = _as_task(app, PRODUCE_TASK, f"nudge.{uuid.uuid4()}", {})
                _send(app, producer, message, queue=CONTROL_QUEUE, priority=9)
    except BrokerUnavailable as error:
        log.info("the workers could not be nudged; they look by themselves", extra={"reason": str(error)})
        return False
    return True


def task_id(delivery: QueuedDelivery) -> str:
    """Readable, and unique for each publication: a revoke must not swallow a later one."""
    slug = _SLUG.sub("-", delivery.campaign_name).strip("-")[:40] or "campaign"
    return f"{slug}.{delivery.delivery_id}.{delivery.server}.{secrets.token_hex(4)}"


def task_arguments(delivery: QueuedDelivery) -> dict[str, object]:
    """The keyword arguments of `campaigns.deliver`: ids alone, never an address."""
    return {
        "campaign": delivery.campaign_name,
        "delivery": delivery.delivery_id,
        "server": delivery.server,
    }


def envelope(task: str, queue: str, priority: int) -> Callable[[str, Mapping[str, object]], str]:
    """Compiles the message of a task; the result makes one from a task id and keyword arguments."""
    blank = json.dumps(_message(task, queue, priority), ensure_ascii=True).replace("%", "%%")
    for field in ("id", "kwargsrepr", "body", "tag"):
        blank = blank.replace(f'"@{field}@"', f"%({field})s")

    def make(identity: str, arguments: Mapping[str, object]) -> str:
        body = json.dumps([[], arguments, _NO_CALLBACKS])
        return blank % {
            "id": json.dumps(identity),
            "kwargsrepr": json.dumps(repr(arguments)),
            "body": f'"{b64encode(body.encode()).decode()}"',
            "tag": f'"{uuid.uuid4()}"',
        }

    return make


_NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _message(task: str, queue: str, priority: int) -> dict[str, Any]:
    """Task message protocol 2 as kombu's virtual transports store it, with holes for what differs."""
    return {
        "body": "@body@",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": _headers(task),
        "properties": {
            "correlation_id": "@id@",
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": "@tag@",
        },
    }


def _headers(task: str) -> dict[str, Any]:
    nothing = ("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")
    return {
        "lang": "py",
        "task": task,
        "id": "@id@",
        "root_id": "@id@",
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "@kwargsrepr@",
        "origin": anon_nodename(),
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamps": {},
        **dict.fromkeys(nothing),
    }


def _grouped(deliveries: Iterable[QueuedDelivery]) -> dict[str, list[str]]:
    """Messages by Redis list, each list in the order of the deliveries."""
    makers: dict[tuple[str, str], tuple[str, Callable[[str, Mapping[str, object]], str]]] = {}
    groups: dict[str, list[str]] = {}
    for delivery in deliveries:
        kind = (delivery.server, delivery.stream)
        if kind not in makers:
            queue, priority = queue_name(delivery.server), _priority(delivery.stream)
            makers[kind] = _key(queue, priority), envelope(DELIVER_TASK, queue, priority)
        key, make = makers[kind]
        groups.setdefault(key, []).append(make(task_id(delivery), task_arguments(delivery)))
    return groups


def is_urgent(stream: str) -> bool:
    """Whether its mail overtakes what others have queued."""
    return stream == "transactional"


def _priority(stream: str) -> int:
    return _URGENT if is_urgent(stream) else _ORDINARY


def _key(queue: str, priority: int) -> str:
    return f"{queue}{_SEPARATOR}{priority}" if priority else queue


def _push(app: Celery, groups: Mapping[str, Sequence[str]], *, ahead: bool = False) -> None:
    """A worker takes from the right: what is pushed there comes first, so the last one is pushed first."""
    client = _client(app)
    with broker_errors(app.conf.broker_url):
        for key, messages in groups.items():
            ordered = messages[::-1] if ahead else messages
            for start in range(0, len(ordered), _BATCH):
                batch = ordered[start : start + _BATCH]
                if ahead:
                    client.rpush(key, *batch)
                else:
                    client.lpush(key, *batch)


_clients: WeakKeyDictionary[Celery, redis.Redis] = WeakKeyDictionary()


def _client(app: Celery) -> redis.Redis:
    client = _clients.get(app)
    if client is None:
        client = _clients[app] = redis_client(app.conf.broker_url, answer_seconds=2.0)
    return client


def _publish(app: Celery, deliveries: Sequence[QueuedDelivery]) -> None:
    """Through kombu, for AMQP, where the highest number is the most urgent.

    A queue that refuses keeps no other server's mail back; the last refusal is raised in the end. A
    connection that is lost ends it.
    """
    by_queue: dict[str, list[QueuedDelivery]] = {}
    for delivery in deliveries:
        by_queue.setdefault(queue_name(delivery.server), []).append(delivery)
    refusal = None
    with _connection(app) as connection:
        for queue, waiting in by_queue.items():
            try:
                _publish_to(app, connection, queue, waiting)
            except BrokerUnavailable as error:
                refusal = error
    if refusal is not None:
        raise refusal


def _publish_to(app: Celery, connection: Any, queue: str, deliveries: Sequence[QueuedDelivery]) -> None:
    with _producer(app, connection, queue) as producer:
        for delivery in deliveries:
            priority = 9 if _priority(delivery.stream) == _URGENT else 0
            message = _as_task(app, DELIVER_TASK, task_id(delivery), task_arguments(delivery))
            _send(app, producer, message, queue=queue, priority=priority)


def _as_task(app: Celery, task: str, identity: str, arguments: Mapping[str, object]) -> Any:
    return app.amqp.as_task_v2(identity, task, (), dict(arguments), ignore_result=True)


def _send(app: Celery, producer: Any, message: Any, *, queue: str, priority: int) -> None:
    """To a queue that is declared first, if it is one of ours.

    That of a server which is not configured any more may still be there, read by a worker of before; if it is
    not, nobody would read it, and the sweep moves the mail.
    """
    known = app.amqp.queues
    producer.publish(
        message.body,
        routing_key=queue,
        exchange="",
        declare=[known[queue]] if queue in known else [],
        serializer="json",
        headers=message.headers,
        priority=priority,
        delivery_mode=2,
        retry=False,
        **message.properties,
    )


@contextmanager
def _producer(app: Celery, connection: Any, queue: str) -> Iterator[Any]:
    """For one queue, on a channel of its own: a refusal may close it. Raises BrokerUnavailable for that."""
    try:
        with app.amqp.Producer(connection.channel(), auto_declare=False) as producer:
            yield producer
    except (*connection.channel_errors, MessageNacked) as error:
        where, cause = address(app.conf.broker_url), str(error) or type(error).__name__
        raise BrokerUnavailable(f"the broker at {where} takes no messages for {queue}: {cause}") from error


@contextmanager
def _connection(app: Celery) -> Iterator[Any]:
    connection = app.connection_for_write(connect_timeout=1)
    errors: tuple[type[BaseException], ...] = (
        OperationalError,
        OSError,
        *connection.connection_errors,
        *connection.channel_errors,
    )
    try:
        with connection:
            # Left to the producer, it would be tried for ever.
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            yield connection
    except errors as error:
        where = address(app.conf.broker_url)
        raise BrokerUnavailable(f"the broker at {where} cannot be reached: {error}") from error
