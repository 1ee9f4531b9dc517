"""Publishes what attempts pass on to another server's queue, gathered into batches."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from campaigns.broker_outage import BrokerOutage
from campaigns.errors import BrokerError
from campaigns.ledger import QueuedDelivery

__all__ = ["Publisher"]

log = logging.getLogger(__name__)


class Publisher:
    """`publish` is called in a thread, one batch at a time. A broker that is away costs nothing but time:
    the ledger says that the delivery is queued, and the sweep publishes it again."""

    def __init__(
        self,
        publish: Callable[[Sequence[QueuedDelivery]], None],
        outage: BrokerOutage,
        *,
        gather_seconds: float = 0.005,
    ) -> None:
        self._publish = publish
        self._outage = outage
        self._gather_seconds = gather_seconds
        self._waiting: list[QueuedDelivery] = []
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Publisher: {len(self._waiting)} waiting>"

    def pass_on(self, delivery: QueuedDelivery) -> None:
        self._waiting.append(delivery)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._flush())

    async def close(self) -> None:
        if self._task is not None:
            await self._task

    async def _flush(self) -> None:
        await asyncio.sleep(self._gather_seconds)
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._publish, batch)
                self._outage.served()
            except BrokerError as error:
                self._outage.refused(error)
            except Exception:
                log.exception("these could not be published; the sweep will", extra={"count": len(batch)})
