"""How much the limits allow now, as the producer needs it: seen, not taken."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from campaigns.ledger import Ledger
from campaigns.settings import Settings

__all__ = ["UNLIMITED", "Allowance", "UsedLimit"]

UNLIMITED = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class UsedLimit:
    """One limit and what is used of it; `limit` as it is written, such as "50000/d"."""

    limit: str
    used: int
    of: int


class Allowance:
    """What the limits of the servers allowed at the last `refresh`. Belongs to one thread.

    `processes(server)`: how many worker processes read a server's queue, for the time when they cannot talk.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, *, processes: Callable[[str], int] = lambda _: 1
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._processes = processes

    @property
    def has_domain_limits(self) -> bool:
        """Whether any limit is by recipient domain: if not, `domain_wait` is 0 for all."""
        return bool(self._settings.limits) or any(server.domain_limits for server in self._settings.servers)

    def refresh(self, domains: Collection[str] = ()) -> None:
        """Look at the servers' limits, and at those of these domains: one round trip. Call it once a turn.

        Raises DatabaseUnavailable, as what was used is read from the ledger when Redis has lost it.
        """

    def room(self, server: str, seconds: float) -> int:
        """How many more mails the server's own limits allow within so many seconds from now."""
        return UNLIMITED

    def is_exhausted(self, server: str) -> tuple[float, str] | None:
        """Seconds until anything goes, and the limit that is used up; None if that is less than 5 s."""
        return None

    def domain_wait(self, server: str, domain: str, stream: str = "") -> float:
        """How long one mail to this domain has to wait before it is queued for the server; 0: not at all.

        Each call is about one more mail: the waits are spread as the limit allows. The domain must have been
        among those of `refresh`.
        """
        return 0.0

    def used(self, server: str) -> list[UsedLimit]:
        """The server's own limits by hour and day, and what is used of them."""
        return []

    def close(self) -> None:
        """Let go of Redis."""
