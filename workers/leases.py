"""The leases that this process holds, renewed in one statement for all of them.

A lease is a promise that a worker is alive. The database's clock decides when it has run out; what is kept
here is this process's own, earlier, opinion: the monotonic time until which the lease surely holds. It is
counted from before the statement was sent, so it can only be too early.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Renew

__all__ = ["Lease", "LeaseKeeper"]

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Lease:
    """One claimed delivery, and until when (`time.monotonic()`, seconds) this process may act on it."""

    delivery_id: int
    fence: int
    valid_until: float
    monotonic: Callable[[], float] = field(default=time.monotonic, repr=False)

    def is_valid(self) -> bool:
        return self.monotonic() < self.valid_until


class LeaseKeeper:
    """Holds leases and renews them every third of their length.

    `renew` takes the operations of all held leases and returns, in their order, whether each still holds.
    """

    def __init__(
        self,
        renew: Callable[[Sequence[Renew]], Awaitable[Sequence[object]]],
        *,
        lease_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._held: dict[int, Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"<LeaseKeeper: {len(self)} held>"

    def now(self) -> float:
        return self._monotonic()

    def hold(self, delivery_id: int, fence: int, *, asked_at: float) -> Lease:
        """Keep a lease that was asked for at `asked_at` (`now()` before the claim was sent)."""
        lease = Lease(
            delivery_id=delivery_id,
            fence=fence,
            valid_until=asked_at + self._lease_seconds,
            monotonic=self._monotonic,
        )
        self._held[delivery_id] = lease
        return lease

    def let_go(self, lease: Lease) -> None:
        if self._held.get(lease.delivery_id) is lease:
            del self._held[lease.delivery_id]

    async def renew_all(self) -> None:
        """Renew what is held; a lease that the ledger no longer knows keeps its old deadline and runs out."""
        leases = list(self._held.values())
        if not leases:
            return
        asked_at = self._monotonic()
        operations = [
            Renew(delivery_id=lease.delivery_id, fence=lease.fence, lease_seconds=self._lease_seconds)
            for lease in leases
        ]
        for lease, renewed in zip(leases, await self._renew(operations), strict=True):
            if renewed is True:
                lease.valid_until = asked_at + self._lease_seconds

    async def run(self) -> None:
        """Renew until cancelled. An outage of the database is waited out: the leases then simply run out."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self.renew_all()
            except DatabaseUnavailable:
                log.warning("leases could not be renewed: the database does not answer")
            except Exception:
                log.exception("leases could not be renewed; it is tried again")
