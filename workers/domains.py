"""The recipients' domains, for limits that depend on them: messages carry ids alone."""

from __future__ import annotations

from collections.abc import Sequence

from campaigns.group_commit import GroupCommit
from campaigns.ledger import Ledger

__all__ = ["Domains"]

GATHER_SECONDS = 0.002


class Domains:
    """What many attempts ask for is read at once. Belongs to one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reads: GroupCommit[int] = GroupCommit(self._read, gather_seconds=GATHER_SECONDS, name="domains")

    def __repr__(self) -> str:
        return f"<Domains: {self._reads!r}>"

    async def of(self, delivery_id: int) -> str:
        """The domain, or "" if there is no such delivery. Raises DatabaseUnavailable."""
        domain: str = await self._reads.submit(delivery_id)
        return domain

    async def close(self) -> None:
        await self._reads.close()

    def _read(self, delivery_ids: Sequence[int]) -> list[str]:
        found = self._ledger.domains_of(delivery_ids)
        return [found.get(delivery_id, "") for delivery_id in delivery_ids]
