"""The limits, as a worker keeps to them: attempts wait here for their turn, or are told to come back later.

Each server has a lane of its own, and so has each recipient domain with limits: what waits in one holds up no
other. It costs no attempt, no connection and no claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from campaigns.limit import Limit
from campaigns.limits import Grant, Limits, Request
from campaigns.publishing import is_urgent
from campaigns.quotas import Quotas
from campaigns.spread import Spread, reach

__all__ = ["Hold", "Pace"]

log = logging.getLogger(__name__)

PORTION_SECONDS = 0.2
"""So much of a rate one process takes at a time, so that the others have their part."""
LEAST_PAUSE_SECONDS = 0.01
MOST_WAIT_SECONDS = 1.0
"""What has to wait for longer waits in the ledger."""
LINE_SECONDS = 2.0
"""So much of a domain's mail waits in line here, so that it does not take the places of others' mail."""
LOOK_AGAIN_SECONDS = 5.0
"""A limit that is used up is asked about again after this: what it said may have changed."""

Ticket = asyncio.Future["Hold | None"]


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Not now: come back after `wait_seconds`. `is_servers`: another server may be free to take it."""

    wait_seconds: float
    reason: str
    is_servers: bool


@dataclass
class Lane:
    """Those who wait for the same limits, in their order; urgent mail goes first.

    `slowest` is the domain's own smooth limit, if there is one. `free_at`: when the limits allow more again.
    """

    server: str
    limits: tuple[Limit, ...]
    slowest: Limit | None
    processes: int
    urgent: deque[Ticket] = field(default_factory=deque)
    ordinary: deque[Ticket] = field(default_factory=deque)
    ask_at: float = 0.0
    free_at: float = 0.0
    full: Limit | None = None

    @property
    def waiting(self) -> int:
        return len(self.urgent) + len(self.ordinary)

    @property
    def most(self) -> int | None:
        """How many may wait in line."""
        if self.slowest is None:
            return None
        return max(1, int(LINE_SECONDS / self.slowest.interval_seconds / self.processes))

    @property
    def portion(self) -> int:
        """How many to ask for at a time."""
        intervals = [limit.interval_seconds for limit in self.limits if not limit.is_counted]
        most = max(1, int(PORTION_SECONDS / max(intervals))) if intervals else self.waiting
        return min(self.waiting, most)

    def pop(self) -> Ticket:
        return (self.urgent or self.ordinary).popleft()

    def drop_cancelled(self) -> None:
        for line in (self.urgent, self.ordinary):
            while line and line[0].done():
                line.popleft()


class Pace:
    """Lets attempts pass as the limits allow, all processes together. Belongs to one event loop.

    `processes(server)`: how many share the server's limits, for the time when they cannot talk.
    """

    def __init__(
        self,
        quotas: Quotas,
        limits: Limits,
        processes: Callable[[str], int],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas = quotas
        self._limits = limits
        self._processes = processes
        self._monotonic = monotonic
        self._lanes: dict[tuple[str, tuple[Limit, ...]], Lane] = {}
        self._unused: Counter[tuple[Limit, ...]] = Counter()
        self._spread = Spread()
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        waiting = sum(lane.waiting for lane in self._lanes.values())
        return f"<Pace: {waiting} waiting in {len(self._lanes)} lanes>"

    async def turn(self, server: str, domain: str = "", stream: str = "") -> Hold | None:
        """Returns None when one more mail may go, or how long it has to wait elsewhere."""
        limits = self._quotas.of(server, domain)
        if not limits:
            return None
        lane = self._lane(server, domain, limits)
        if hold := self._refusal(lane, urgent=is_urgent(stream)):
            return hold
        ticket: Ticket = asyncio.get_running_loop().create_future()
        (lane.urgent if is_urgent(stream) else lane.ordinary).append(ticket)
        self._start()
        return await ticket

    def give_back(self, server: str, domain: str = "") -> None:
        """The mail that was let pass did not go out through the server after all."""
        if limits := self._quotas.of(server, domain):
            self._unused[limits] += 1
            lane = self._lanes.get((server, limits))
            if lane is not None:
                lane.full, lane.ask_at = None, 0.0
            self._start()

    async def close(self) -> None:
        """Nobody passes any more."""
        if self._pump is not None:
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump

    def _lane(self, server: str, domain: str, limits: tuple[Limit, ...]) -> Lane:
        lane = self._lanes.get((server, limits))
        if lane is None:
            own = (*self._quotas.of_domain(domain), *self._quotas.of_pair(server, domain))
            smooth = [limit for limit in own if not limit.is_counted]
            slowest = max(smooth, key=lambda limit: limit.interval_seconds, default=None)
            processes = max(1, self._processes(server))
            lane = Lane(server=server, limits=limits, slowest=slowest, processes=processes)
            self._lanes[server, limits] = lane
        return lane

    def _refusal(self, lane: Lane, *, urgent: bool) -> Hold | None:
        """Not even in line: the limits are known to be used up, or the line is long enough."""
        now = self._monotonic()
        if lane.full is not None and lane.ask_at > now:
            return self._hold(lane, lane.full, lane.free_at - now)
        if lane.slowest is not None and not urgent and lane.waiting >= (lane.most or 0):
            return self._hold(lane, lane.slowest, LINE_SECONDS)
        return None

    def _start(self) -> None:
        self._news.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._let_pass())

    async def _let_pass(self) -> None:
        while self._tidy():
            self._news.clear()
            try:
                await self._serve()
            except Exception:
                log.exception("the limits could not be asked; trying again")
                await asyncio.sleep(MOST_WAIT_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._pause_seconds())

    def _tidy(self) -> bool:
        """Forget who gave up, and lanes where nobody waits; whether there is anything to do."""
        now = self._monotonic()
        for key, lane in tuple(self._lanes.items()):
            lane.drop_cancelled()
            if lane.waiting == 0 and lane.ask_at <= now:
                del self._lanes[key]
        self._spread.forget_past(now)
        return bool(self._lanes or self._unused)

    def _pause_seconds(self) -> float:
        times = [lane.ask_at for lane in self._lanes.values()]
        return max(0.0, min(times, default=0.0) - self._monotonic())

    async def _serve(self) -> None:
        now = self._monotonic()
        lanes = [lane for lane in self._lanes.values() if lane.waiting > 0 and lane.ask_at <= now]
        unused, self._unused = self._unused, Counter()
        requests = [Request(limits=limits, wanted=-count) for limits, count in unused.items()]
        requests += [
            Request(limits=lane.limits, wanted=lane.portion, processes=lane.processes) for lane in lanes
        ]
        if not requests:
            return
        grants = await asyncio.to_thread(self._limits.take_all, requests)
        for lane, grant in zip(lanes, grants[len(unused) :], strict=True):
            self._pass(lane, grant)

    def _pass(self, lane: Lane, grant: Grant) -> None:
        for _ in range(grant.granted):
            lane.drop_cancelled()
            if lane.waiting == 0:
                self._unused[lane.limits] += 1
            else:
                _tell(lane.pop(), None)
        now = self._monotonic()
        wait_seconds = self._quotas.wait_seconds(lane.server, grant.wait_seconds)
        lane.full = grant.limit if wait_seconds > MOST_WAIT_SECONDS else None
        lane.free_at = now + wait_seconds
        lane.ask_at = now + min(max(wait_seconds, LEAST_PAUSE_SECONDS), LOOK_AGAIN_SECONDS)
        if lane.full is not None:
            for _ in range(lane.waiting):
                _tell(lane.pop(), self._hold(lane, lane.full, wait_seconds))

    def _hold(self, lane: Lane, limit: Limit, wait_seconds: float) -> Hold:
        """They come back one after the other, as the limit will allow; others' mail is not known here."""
        spread_seconds = self._spread.wait_seconds(
            f"{lane.server} {limit.name}",
            self._monotonic(),
            not_before_seconds=wait_seconds,
            interval_seconds=limit.interval_seconds * lane.processes,
            horizon_seconds=reach(wait_seconds),
        )
        is_servers = not limit.name.startswith("domain:")
        return Hold(wait_seconds=spread_seconds, reason=f"the limit of {limit.text}", is_servers=is_servers)


def _tell(ticket: Ticket, answer: Hold | None) -> None:
    if not ticket.done():
        ticket.set_result(answer)
