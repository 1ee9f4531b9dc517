"""How much the limits allow now, as the producer needs it: seen, not taken."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from campaigns.ledger import Ledger
from campaigns.limit import Grant, Limit
from campaigns.limits import Limits, Request
from campaigns.quotas import Quotas, Remembered
from campaigns.settings import Settings
from campaigns.spread import HORIZON_SECONDS, Spread, reach

__all__ = ["UNLIMITED", "Allowance", "UsedLimit"]

log = logging.getLogger(__name__)

UNLIMITED = 1_000_000_000
EXHAUSTED_SECONDS = 5.0
AHEAD_SECONDS = 2.0
"""So much of a domain's mail is queued ahead of its limit; the rest waits in the ledger."""
LEAST_WAIT_SECONDS = 1.0
FREE_AGAIN_PART = 0.05
"""A limit counts as open again when so much of it is left: buckets pass out of its window one by one."""
TELL_SECONDS = 5.0
TOLD_SECONDS = 7 * 86_400.0
"""How long it is known that a limit was told to be full: its end is told however late anybody looks."""
_SPANS = {"h": "1 h", "d": "24 h"}

Key = tuple[str, str]
"""Server and domain: one of them may be empty."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """When the first that is postponed may go, how far apart the others follow, and how far at most."""

    first_seconds: float
    interval_seconds: float
    horizon_seconds: float


@dataclass(frozen=True, kw_only=True)
class UsedLimit:
    """One limit and what is used of it; `limit` as it is written: "50000/d", or "50/d (warm-up)"."""

    limit: str
    used: int
    of: int

    @property
    def told(self) -> str:
        """`769 of 20,000 in 24 h (warm-up)`: no calendar day."""
        _, _, unit = self.limit.partition("/")
        return f"{self.used:,} of {self.of:,} in {_SPANS[unit[:1]]}{unit[1:]}"


@dataclass(frozen=True, kw_only=True)
class View:
    """Limits as they were seen: what is left of each, and when one more mail may go."""

    limits: Sequence[Limit]
    grant: Grant

    @property
    def left(self) -> dict[Limit, int]:
        return dict(zip(self.limits, self.grant.left, strict=False))

    def room(self, seconds: float) -> int:
        """How many more within so many seconds; none while it is not known what was used."""
        if self.limits and not self.grant.left:
            return 0
        return min((_room(limit, left, seconds) for limit, left in self.left.items()), default=UNLIMITED)


class Allowance:
    """What the limits of the servers allowed at the last `refresh`. Belongs to one thread.

    `processes(server)`: how many worker processes read a server's queue, for the time when they cannot talk.
    `fills`: see Limits; who does not fill only looks, and tells nothing either.
    """

    def __init__(  # noqa: PLR0913 - what varies, by keyword
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        processes: Callable[[str], int] = lambda _: 1,
        fills: bool = True,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas = Quotas(settings, clock=clock)
        self._servers = [server.name for server in settings.servers]
        self._ledger = ledger
        self._processes = processes
        self._monotonic = monotonic
        self._limits = Limits(settings.state_url, memory=Remembered(settings, ledger), fills=fills)
        self._tells = fills
        self._views: dict[Key, View] = {}
        self._rooms: dict[Key, float] = {}
        self._spread = Spread()
        self._tell_at = float("-inf")

    def __repr__(self) -> str:
        full = [name for name in self._servers if self.is_exhausted(name)]
        return f"<Allowance: {', '.join(full) or 'nothing'} exhausted>"

    @property
    def has_domain_limits(self) -> bool:
        """Whether any limit is by recipient domain: if not, `domain_wait` is 0 for all."""
        return self._quotas.has_domain_limits

    def refresh(self, domains: Collection[str] = ()) -> None:
        """Look at the servers' limits, and at those of these domains: one round trip. Call it once a turn.

        Raises DatabaseUnavailable.
        """
        wanted = {key: limits for key, limits in self._limits_of(set(domains)) if limits}
        requests = [
            Request(limits=limits, wanted=0, processes=self._sharing(server))
            for (server, _), limits in wanted.items()
        ]
        grants = self._limits.take_all(requests) if requests else []
        self._views = {
            key: View(limits=limits, grant=grant)
            for (key, limits), grant in zip(wanted.items(), grants, strict=True)
        }
        self._rooms = self._domain_rooms()
        self._tell_changes()

    def room(self, server: str, seconds: float) -> int:
        """How many more mails the server's own limits allow within so many seconds from now."""
        view = self._views.get((server, ""))
        return UNLIMITED if view is None else view.room(seconds)

    def is_exhausted(self, server: str) -> tuple[float, str] | None:
        """Seconds until anything goes, and the limit that is used up; None if that is less than 5 s."""
        view = self._views.get((server, ""))
        if view is None or view.grant.limit is None:
            return None
        wait_seconds = self._quotas.wait_seconds(server, view.grant.wait_seconds)
        return (wait_seconds, view.grant.limit.text) if wait_seconds >= EXHAUSTED_SECONDS else None

    def domain_wait(self, server: str, domain: str, stream: str = "") -> float:
        """The same as `domain_waits` for mail that only one server may take."""
        return self.domain_waits([server], domain, stream)[server]

    def domain_waits(self, servers: Collection[str], domain: str, stream: str = "") -> dict[str, float]:
        """How long one mail to this domain has to wait before it is queued for each server; 0: not at all.

        Each call is about one more mail, which one of `servers` gets. If all of them are full, the waits are
        spread as the limits allow; streams do not wait behind each other. The domain must have been among
        those of the last `refresh`.
        """
        full = {server: self._full(server, domain) for server in servers}
        free = [server for server, keys in full.items() if not keys]
        places = {server: self._places(keys) for server, keys in full.items() if keys}
        if free:
            self._take_room(free, domain)
        if free or not places:
            return {server: places[server].first_seconds if server in places else 0.0 for server in servers}
        best = min(places, key=lambda server: (places[server].first_seconds, places[server].interval_seconds))
        wait_seconds = self._spread.wait_seconds(
            f"{best} {domain} {stream}",
            self._monotonic(),
            not_before_seconds=places[best].first_seconds,
            interval_seconds=places[best].interval_seconds,
            horizon_seconds=places[best].horizon_seconds,
        )
        return dict.fromkeys(servers, wait_seconds)

    def _full(self, server: str, domain: str) -> list[Key]:
        """Those of the domain's limits that have no room for more to be queued."""
        keys = (("", domain), (server, domain))
        return [key for key in keys if key in self._rooms and self._rooms[key] < 1]

    def _take_room(self, servers: Sequence[str], domain: str) -> None:
        parts: dict[Key, float] = {("", domain): 1.0}
        parts |= {(server, domain): 1.0 / len(servers) for server in servers}
        for key, part in parts.items():
            if key in self._rooms:
                self._rooms[key] -= part

    def _places(self, keys: Sequence[Key]) -> Places:
        views = [self._views[key] for key in keys]
        first_seconds = max(LEAST_WAIT_SECONDS, *(view.grant.wait_seconds for view in views))
        slowest = max(
            (limit for view in views for limit in _pacing(view)), key=lambda one: one.interval_seconds
        )
        is_sure = not slowest.is_counted and all(view.grant.left for view in views)
        return Places(
            first_seconds=first_seconds,
            interval_seconds=slowest.interval_seconds,
            horizon_seconds=HORIZON_SECONDS if is_sure else reach(first_seconds),
        )

    def used(self, server: str) -> list[UsedLimit]:
        """The server's own limits by hour and day, and what is used of them."""
        view = self._views.get((server, ""))
        if view is None:
            return []
        return [
            UsedLimit(limit=limit.text, used=int(limit.count) - left, of=int(limit.count))
            for limit, left in view.left.items()
            if limit.is_counted
        ]

    def close(self) -> None:
        """Let go of Redis."""
        self._limits.close()

    def _limits_of(self, domains: Collection[str]) -> Iterable[tuple[Key, tuple[Limit, ...]]]:
        for server in self._servers:
            yield (server, ""), self._quotas.of_server(server)
        if not self.has_domain_limits:
            return
        for domain in domains:
            yield ("", domain), self._quotas.of_domain(domain)
            for server in self._servers:
                yield (server, domain), self._quotas.of_pair(server, domain)

    def _sharing(self, server: str) -> int:
        names = [server] if server else self._servers
        return max(1, sum(self._processes(name) for name in names))

    def _domain_rooms(self) -> dict[Key, float]:
        """How much more may be queued: what waits in the queues already has its place."""
        views = {key: view for key, view in self._views.items() if key[1]}
        if not views:
            return {}
        self._spread.forget_past(self._monotonic())
        queued = self._ledger.queued_by_domain({domain for _, domain in views})
        totals = dict(queued)
        for (_, domain), count in queued.items():
            totals["", domain] = totals.get(("", domain), 0) + count
        return {key: view.room(AHEAD_SECONDS) - totals.get(key, 0) for key, view in views.items()}

    def _tell_changes(self) -> None:
        """A limit by hour or day that is used up, or is open again, is an event: once in the cluster."""
        if not self._tells or self._monotonic() < self._tell_at:
            return
        self._tell_at = self._monotonic() + TELL_SECONDS
        for (server, domain), view in self._views.items():
            if server and not domain:
                for limit, left in view.left.items():
                    if limit.is_counted:
                        self._tell(server, limit, left, view.grant.wait_seconds)
        for server, name in self._quotas.outlived():
            if self._limits.ended(f"full:{name}"):
                self._record(server, "full", "open", "its warm-up is over")

    def _tell(self, server: str, limit: Limit, left: int, wait_seconds: float) -> None:
        name = f"full:{limit.name}"
        if left <= 0 and wait_seconds >= EXHAUSTED_SECONDS:
            if self._limits.began(name, TOLD_SECONDS):
                self._record(server, "open", "full", f"{limit.text} is used up")
        elif left >= max(1.0, FREE_AGAIN_PART * limit.count) and self._limits.ended(name):
            self._record(server, "full", "open", f"{left} left of {limit.text}")

    def _record(self, server: str, before: str, after: str, reason: str) -> None:
        self._ledger.record_event("limit", server=server, from_state=before, to_state=after, reason=reason)
        said = {"server": server, "from": before, "to": after, "reason": reason}
        log.warning("a server's limit changed", extra=said)


def _room(limit: Limit, left: int, seconds: float) -> int:
    more = 0 if limit.is_counted else math.floor(limit.count / limit.period_seconds * seconds)
    return max(0, left) + more


def _pacing(view: View) -> list[Limit]:
    """The limits that set the pace: those by second and minute, and what is used up."""
    left = view.left
    pacing = [limit for limit in view.limits if not limit.is_counted or left.get(limit, 1) <= 0]
    return pacing or list(view.limits)
