"""What is known of the mail servers now: their health, who reads their queues, what they are blocked for.

One of these lives in each process; it remembers little and may be a moment old. Whatever it says wrong costs
time, never mail: the ledger decides who may send.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from campaigns import routing
from campaigns.allowance import Allowance
from campaigns.breaker import Fault
from campaigns.errors import DatabaseUnavailable
from campaigns.health import Change, HealthBoard, ServerHealth
from campaigns.ledger import DeadServer, Ledger, ModeRecord, StandbyRecord
from campaigns.reply import redact
from campaigns.settings import BUILT_IN_STREAMS, Server, Settings

__all__ = ["READER_SECONDS", "Fleet", "Readers"]

log = logging.getLogger(__name__)

READER_SECONDS = 15.0
"""A worker that has not been seen for so long does not read its queue any more."""
SLOW_REFRESH_SECONDS = 1.0
LIMIT_SECONDS = 3.0
"""What a limited server's queue holds at most: so much of what its limits allow."""
LONG_LIMIT_SECONDS = 60.0
LEAST_REST_SECONDS, MOST_REST_SECONDS = 0.5, 10.0
_CHANGED = {
    "breaker": "a server's breaker changed",
    "share": "a server's share changed",
    "limit": "a server's limit changed",
}


@dataclass(frozen=True, kw_only=True)
class Readers:
    """How many live workers read each server's queue, and how many mails per second they send there.

    `capacity_per_second`: how many that could be; not there while nobody knows. `workers`: all that live,
    also those that read no queue.
    """

    processes: Mapping[str, int]
    sent_per_second: Mapping[str, float]
    is_settled: bool
    capacity_per_second: Mapping[str, float] = field(default_factory=dict)
    workers: int = 0

    def names(self, servers: Sequence[Server]) -> frozenset[str]:
        """Who counts as read. While nobody has been up for long, everybody does: workers start one by one."""
        if not self.is_settled:
            return frozenset(server.name for server in servers)
        return frozenset(self.processes)


class Fleet:
    """The servers of `settings`, as the ledger and the health board know them."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        board: HealthBoard,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.board = board
        self.readers = Readers(processes={}, sent_per_second={}, is_settled=False)
        self._health: Mapping[str, ServerHealth] = {}
        self._blocks: Sequence[routing.Blocked] = ()
        self._modes: Mapping[str, ModeRecord] | None = None
        self._standbys: Mapping[str, StandbyRecord] = {}
        self._dead: Sequence[DeadServer] = ()
        self._allowance = Allowance(settings, ledger, processes=self.processes)
        self._exhausted: Mapping[str, float] = {}
        self._limit_rooms: Mapping[str, int] = {}
        self._monotonic = monotonic
        self._slow_refresh_at = 0.0
        self._clock_offset = 0.0
        self._recording = threading.Lock()

    def __repr__(self) -> str:
        states = ", ".join(f"{server.name} {self.state(server.name)}" for server in self.settings.servers)
        return f"<Fleet: {states}>"

    def close(self) -> None:
        """Let go of what it opened itself: ledger and board are others'."""
        self._allowance.close()

    def now(self) -> float:
        """The database's time, seconds since the epoch, as near as was last seen."""
        return time.time() + self._clock_offset

    def refresh(self) -> None:
        """Look at health, and now and then at readers and blocks. Raises DatabaseUnavailable."""
        self._health = self.board.look()
        if self._monotonic() >= self._slow_refresh_at:
            self._slow_refresh_at = self._monotonic() + SLOW_REFRESH_SECONDS
            self._clock_offset = self.ledger.database.now() - time.time()
            self._blocks = self.ledger.blocks()
            self._look_at_modes()
            self._standbys = self.ledger.standbys()
            self._dead = self.ledger.declared_dead()
            self.readers = self._read_workers()
            self._read_limits()
            self._consider()
        self._record_changes()

    def refresh_soon(self) -> None:
        """Look at blocks and readers, too, at the next `refresh`."""
        self._slow_refresh_at = 0.0

    def state(self, server: str) -> str:
        """closed, open or half-open."""
        return routing.state_of(self._health.get(server))

    def usable(
        self, stream: str, sender: str = "", domain: str = "", *, without: str | None = None
    ) -> tuple[str, ...]:
        """The servers that may take such mail now, in the order of the stream's route."""
        return routing.usable(
            self.settings.route(stream),
            health=self._health,
            readers=self.readers.names(self.settings.servers),
            blocks=self._blocks,
            sender=sender,
            domain=domain,
            now=self.now(),
            without=without,
            weights={server.name: self.weight(server.name, stream) for server in self.settings.route(stream)},
            off=self.off(),
        )

    def probing(self, stream: str) -> tuple[str, ...]:
        """Half-open servers of the stream: a few real mails are to try them; cold ones only when needed."""
        readers = self.readers.names(self.settings.servers)
        names = routing.probing(self.settings.route(stream), health=self._health, readers=readers)
        off = self.off()
        is_served = any(self.weight(name, stream) > 0 for name in self.usable(stream))
        return tuple(
            name for name in names if name not in off and not (is_served and self.weight(name, stream) <= 0)
        )

    def weight(self, server: str, stream: str) -> float:
        """Its weight in a stream: the operator's, or the configured one."""
        mode = self._mode(server)
        if mode is not None and mode.weight is not None:
            return float(mode.weight)
        return float(self.settings.weight(server, stream))

    def shares(self, stream: str, servers: Sequence[str]) -> dict[str, float]:
        """The part of a stream's new mail that each of `servers` is given now; they add up to 1."""
        weights = {name: self.weight(name, stream) for name in servers}
        return routing.shares(weights, {name: one.share for name, one in self._health.items()})

    def mode(self, server: str) -> str:
        """open, drained or closed: what the operator decided."""
        mode = self._mode(server)
        return "open" if mode is None else mode.mode

    def _mode(self, server: str) -> ModeRecord | None:
        return None if self._modes is None else self._modes.get(server)

    def off(self) -> frozenset[str]:
        """Servers that are given no new mail whatever their health: drained, closed, not started, used up.

        By weights, only a limit that holds for long lets a server's share go to others.
        """
        longest = LONG_LIMIT_SECONDS if self.settings.sharing == "weights" else 0.0
        return frozenset(
            server.name
            for server in self.settings.servers
            if self.mode(server.name) != "open"
            or not self.is_started(server.name)
            or self._exhausted.get(server.name, 0.0) > longest
        )

    def is_started(self, server: str) -> bool:
        """False for a cold standby that has to be started first, and was not."""
        if not self.settings.server(server).on_activate:
            return True
        standby = self._standbys.get(server)
        return standby is not None and standby.state == "active"

    def is_declared_dead(self, server: str, purpose: str) -> bool:
        """Whether a drill has mail of this purpose treat the server as dead now."""
        return self.drill_of(server, purpose) is not None

    def drill_of(self, server: str, purpose: str) -> DeadServer | None:
        """The drill that does so. Drills are announced, so that all processes begin and end at one moment."""
        now = self.now()
        concerned = (dead for dead in self._dead if dead.server == server and dead.concerns(purpose, now))
        return next(concerned, None)

    def blocked(self, stream: str, sender: str, domain: str) -> frozenset[str]:
        """Servers of the stream that are taken off this sender or domain."""
        route = self.settings.route(stream)
        allowed = routing.allowed(route, self._blocks, sender, domain, self.now())
        return frozenset(server.name for server in route) - {server.name for server in allowed}

    def processes(self, server: str) -> int:
        """How many worker processes read the server's queue; 1 while none is known."""
        return max(1, self.readers.processes.get(server, 1))

    def producers(self) -> int:
        """How many processes give out mail: every worker does, whatever it reads; 1 while none is known."""
        return max(1, self.readers.workers)

    def limit_room(self, server: str) -> int | None:
        """How much mail of others a limited server may be given at once; None: any amount."""
        return self._limit_rooms.get(server)

    @property
    def has_blocks(self) -> bool:
        return bool(self._blocks)

    def unavailable(self) -> tuple[str, ...]:
        """Servers that mail should not wait for: their breaker is open, nobody reads their queue, or they
        are closed or not started."""
        read = self.readers.names(self.settings.servers)
        names = [server.name for server in self.settings.servers]
        return tuple(
            name
            for name in names
            if self._is_open_for_all(name)
            or (read and name not in read)
            or self.mode(name) == "closed"
            or not self.is_started(name)
        )

    def failing(self) -> frozenset[str]:
        """Servers that take no mail by no decision of anybody: given up, on trial, or read by nobody."""
        unavailable = self.unavailable()
        return frozenset(
            server.name
            for server in self.settings.servers
            if self.mode(server.name) != "closed"
            and self.is_started(server.name)
            and (server.name in unavailable or self.state(server.name) != "closed")
        )

    def is_needed(self, server: str) -> bool:
        """Whether mail may go out through it now: not while it is closed or not started, nor while it is cold
        and hot ones take the mail."""
        if self.mode(server) == "closed" or not self.is_started(server):
            return False
        streams = {*BUILT_IN_STREAMS, *self.settings.streams}
        return (
            self.mode(server) == "drained"
            or any(self.weight(server, stream) > 0 for stream in streams)
            or any(server in (*self.usable(stream), *self.probing(stream)) for stream in streams)
        )

    def _is_open_for_all(self, server: str) -> bool:
        return self.state(server) == "open" and self.is_shared

    @property
    def is_shared(self) -> bool:
        """Whether all processes see the same health. If not, nobody moves mail on its own opinion alone:
        two that each know of one dead server would hand it to and fro."""
        return self.board.is_shared

    def admits(self, server: str) -> bool | None:
        """Whether an attempt may begin; None: only a probe may, and one must ask `may_probe`."""
        if self.mode(server) == "closed" or not self.is_started(server):
            return False
        if self.state(server) == "half-open":
            return None
        return routing.is_well(self._health.get(server))

    def rest_seconds(self, stream: str) -> float:
        """How long mail that no server can take should rest before it is looked at again."""
        rests = [self._rest_seconds(server.name) for server in self.settings.route(stream)]
        rest_seconds = min(max(min(rests), LEAST_REST_SECONDS), MOST_REST_SECONDS)
        return rest_seconds * random.uniform(1.0, 1.3)  # noqa: S311 - jitter

    def report(self, server: str, fault: Fault | None, *, token: str = "") -> Change | None:
        """Tell the board how the server did; what that changes becomes events. None: it did its work."""
        if fault is not None:
            change = self.board.fault(server, fault)
        else:
            change = self.board.success(server, token=token)
        self._health = self.board.snapshot()
        self._record_changes()
        return change

    def _consider(self) -> None:
        """Servers that are drained, closed or not started are not among those that might still take mail, nor
        are those that nobody reads, that are full or used up: unless there are no others."""
        names = [server.name for server in self.settings.servers]
        able = [name for name in names if self.mode(name) == "open" and self.is_started(name)]
        read, off = self.readers.names(self.settings.servers), self.off()
        takers = [name for name in able if name in read and name not in off and not self._is_full(name)]
        self.board.consider(takers or able or names)

    def _is_full(self, server: str) -> bool:
        health = self._health.get(server)
        return health is not None and health.is_full

    def _record_changes(self) -> None:
        """Those of this process's doing, in their order. While the database is away they are kept."""
        with self._recording:
            changes = self.board.take_changes()
            while changes:
                try:
                    self.record(changes[0])
                except DatabaseUnavailable:
                    self.board.keep_changes(changes)
                    raise
                changes.pop(0)

    def record(self, change: Change) -> None:
        """Keep an event, and log it: nobody else does either."""
        self.ledger.record_event(
            kind=change.kind,
            server=change.server,
            from_state=change.before,
            to_state=change.after,
            reason=change.reason,
        )
        log.warning(
            _CHANGED[change.kind],
            extra={
                "server": change.server,
                "from": change.before,
                "to": change.after,
                "reason": change.reason,
            },
        )

    def _look_at_modes(self) -> None:
        """What operators decided. What they change is logged by one process: a command has no log."""
        before, self._modes = self._modes, self.ledger.modes()
        if before is None:
            return
        for name, mode in self._modes.items():
            was = before.get(name)
            if mode != was and self.board.is_first(f"operator:{name}:{mode.changed_at!r}"):
                log.warning("an operator changed a server", extra=_changed_by_hand(was, mode))

    def _read_limits(self) -> None:
        allowance = self._allowance
        allowance.refresh()
        names = [server.name for server in self.settings.servers if server.is_limited]
        exhausted = {name: found[0] for name in names if (found := allowance.is_exhausted(name)) is not None}
        self._exhausted = exhausted
        self._limit_rooms = {name: allowance.room(name, LIMIT_SECONDS) for name in names}

    def _rest_seconds(self, server: str) -> float:
        health = self._health.get(server)
        return 0.0 if health is None else health.rest_seconds

    def _read_workers(self) -> Readers:
        now = self.now()
        workers = self.ledger.live_workers(READER_SECONDS)
        processes: dict[str, int] = {}
        rates: dict[str, float] = {}
        capacities: dict[str, float] = {}
        for worker in workers:
            for name in worker.servers:
                processes[name] = processes.get(name, 0) + 1
                rate, capacity = worker.loads.get(name, (worker.sent_per_second, None))
                rates[name] = rates.get(name, 0.0) + rate
                if capacity is not None:
                    capacities[name] = capacities.get(name, 0.0) + capacity
        oldest = min((worker.started_at for worker in workers if worker.servers), default=now)
        return Readers(
            processes=processes,
            sent_per_second=rates,
            capacity_per_second=capacities,
            is_settled=now - oldest > READER_SECONDS,
            workers=len(workers),
        )


def _changed_by_hand(was: ModeRecord | None, now: ModeRecord) -> dict[str, Any]:
    """What of it, for the log: the mode with its reason, or the weight."""
    if now.mode != ("open" if was is None else was.mode):
        return {"server": now.server, "to": now.mode, "reason": redact(now.reason or "")}
    return {
        "server": now.server,
        "to": "its configured weight" if now.weight is None else f"weight {now.weight}",
    }
