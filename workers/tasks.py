"""The tasks. Thin: each hands its arguments to the runtime of this process and says what came of it."""

import asyncio
import logging
import sys
from collections.abc import Sequence

from celery import Celery
from celery.exceptions import Reject

from campaigns.errors import BrokerUnavailable
from campaigns.queues import DELIVER_TASK, PRODUCE_TASK, SWEEP_TASK, TaskResult, check_broker, queue_name
from campaigns.settings import Settings
from workers.asyncio_pool import on_loop_start, on_loop_stop
from workers.attempt import Job
from workers.runtime import Runtime

__all__ = ["register"]

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0001
"""How long a thread may keep the interpreter while another wants it. Three threads share the work (broker,
mail, database), and each gives it up at every system call: with Python's 5 ms a batch of the ledger took
twice as long."""


class _Workplace:
    """Holds the runtime while a worker runs; there is none in a process that only publishes."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        if self._runtime is None:
            raise Reject("the worker is not running", requeue=True)
        return self._runtime

    async def start(self) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            await asyncio.to_thread(check_broker, self._settings)
        except BrokerUnavailable as error:
            log.warning("the broker is away; the worker waits for it", extra={"reason": str(error)})
        self._runtime = Runtime(self._settings, self._app, self._servers())
        await self._runtime.start()

    async def stop(self) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await runtime.stop()

    def _servers(self) -> Sequence[str]:
        """The servers whose queues this worker reads; without -Q, all of them."""
        consumed = self._app.amqp.queues.consume_from
        names = [server.name for server in self._settings.servers]
        return [name for name in names if queue_name(name) in consumed]


def register(app: Celery, settings: Settings) -> None:
    """Define the tasks on `app`, and tie the runtime to the life of its worker pool."""
    workplace = _Workplace(app, settings)
    on_loop_start(app, workplace.start)
    on_loop_stop(app, workplace.stop)

    @app.task(name=DELIVER_TASK)
    async def deliver(*, campaign: str, delivery: int, server: str) -> TaskResult:
        """One attempt of one delivery through one server."""
        job = Job(campaign=campaign, delivery_id=delivery, server=server)
        result = await workplace.runtime.deliver(job)
        if result is None:
            raise Reject("the worker is stopping", requeue=True)
        return result

    @app.task(name=PRODUCE_TASK)
    async def produce() -> TaskResult:
        """Fill the servers' queues from the ledger now."""
        published = await workplace.runtime.produce()
        return TaskResult(state="SUCCESS", result=f"{published} published")

    @app.task(name=SWEEP_TASK)
    async def sweep() -> TaskResult:
        """End expired leases, publish lost messages again, finish campaigns."""
        await workplace.runtime.sweep()
        return TaskResult(state="SUCCESS", result="swept")
