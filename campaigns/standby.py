"""Cold standbys that must be started first: started when no hot server can take the mail, stopped afterwards.

Every worker looks; whose compare-and-set in the database succeeds has the turn. A process that dies in its
turn is followed by another when the turn's time is over, so both commands must bear being run twice.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from campaigns.fleet import Fleet
from campaigns.hook import HookResult, run_hook
from campaigns.ledger import StandbyRecord, StandbyState
from campaigns.server import Server
from campaigns.server_check import check_server
from campaigns.settings import BUILT_IN_STREAMS

__all__ = ["Need", "StandbyKeeper", "StandbyTiming", "next_turn"]

log = logging.getLogger(__name__)

LONGEST_CHECK_SECONDS = 5.0
BETWEEN_CHECKS_SECONDS = 0.5
MARGIN_SECONDS = 15.0
"""What a turn may last beyond what it does, before another process takes it over."""

Turn = Literal["start", "stop"]
_START_REASONS: dict[StandbyState, str] = {
    "resting": "no hot server takes mail",
    "active": "it does not answer any more, and no hot server takes mail",
    "starting": "whoever was starting it is gone",
}


@dataclass(frozen=True, kw_only=True)
class StandbyTiming:
    """`needed`: no hot server for so long, and it is started. `idle`: not needed for so long: it is stopped.

    `down`: needed, and given up by its breaker for so long: it is started again. `settle`: how long the other
    processes may take to see that it takes no more mail; `leave`: how long its last mail may take then. After
    a failure the next turn waits for a pause, each twice as long.
    """

    needed_seconds: float = 3.0
    idle_seconds: float = 60.0
    down_seconds: float = 30.0
    settle_seconds: float = 4.0
    leave_seconds: float = 30.0
    first_pause_seconds: float = 5.0
    longest_pause_seconds: float = 300.0

    def pause_seconds(self, failures: int, chance: float) -> float:
        """After so many failures in a row; up to a fifth shorter or longer by `chance`, from 0 to 1."""
        doubled = self.first_pause_seconds * 2.0 ** min(failures - 1, 30)
        return min(doubled, self.longest_pause_seconds) * (0.8 + 0.4 * chance)


@dataclass(frozen=True, kw_only=True)
class Need:
    """Whether mail waits that no hot server takes, and whether a standby is kept for some that may come.

    For so long it has been wanted, not kept, or given up by its breaker, without a break.
    """

    is_wanted: bool
    is_kept: bool
    wanted_seconds: float = 0.0
    idle_seconds: float = 0.0
    down_seconds: float = 0.0


def next_turn(standby: StandbyRecord | None, need: Need, *, now: float, timing: StandbyTiming) -> Turn | None:
    """What is to be done with a standby; `now` is the database's time. Pure.

    None while somebody has the turn, or a pause lasts. What a vanished process began is finished.
    """
    if standby is not None and standby.is_waiting(now):
        return None
    match standby.state if standby is not None else "resting":
        case "resting":
            return "start" if need.is_wanted and need.wanted_seconds >= timing.needed_seconds else None
        case "starting":
            return "start" if need.is_kept else "stop"
        case "active" if need.is_wanted and need.down_seconds >= timing.down_seconds:
            return "start"
        case "active":
            return "stop" if not need.is_kept and need.idle_seconds >= timing.idle_seconds else None
        case _:
            return "stop"


class StandbyKeeper:
    """One turn is `run_once`. It blocks while a command runs: give it a thread of its own, and `stop` it."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        owner: str,
        timing: StandbyTiming = StandbyTiming(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._settings, self._ledger = fleet.settings, fleet.ledger
        self._owner = owner
        self._timing = timing
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._at_rest = threading.Event()
        self._at_rest.set()
        self._since: dict[tuple[str, str], float] = {}
        self.servers = tuple(server for server in fleet.settings.servers if server.on_activate)

    def __repr__(self) -> str:
        return f"<StandbyKeeper of {', '.join(server.name for server in self.servers) or 'no server'}>"

    def stop(self) -> None:
        """Break off what is being done, and give the turn back, so that another process need not wait."""
        self._stopping.set()

    def wait_until_at_rest(self, within_seconds: float) -> None:
        """Return when nothing is being done any more, or the time is over."""
        self._at_rest.wait(within_seconds)

    def run_once(self) -> None:
        """Start or stop what is due. Raises DatabaseUnavailable."""
        self._at_rest.clear()
        try:
            for server in self.servers:
                self._look_after(server)
        finally:
            self._at_rest.set()

    def _look_after(self, server: Server) -> None:
        if self._stopping.is_set():
            return
        standby = self._ledger.standbys().get(server.name)
        turn = next_turn(
            standby, self._lasting_need(server, standby), now=self._fleet.now(), timing=self._timing
        )
        before: StandbyState = standby.state if standby else "resting"
        failures = standby.failures if standby else 0
        if turn == "start":
            self._start(server, before, failures)
        elif turn == "stop" and not (before == "active" and self._ledger.is_busy(server.name)):
            self._stop(server, before, failures)

    def _lasting_need(self, server: Server, standby: StandbyRecord | None) -> Need:
        """It is idle only while it is active: whoever had it started may need it, unseen by this process."""
        need = self._need(server)
        is_idle = standby is not None and standby.state == "active" and not need.is_kept
        return replace(
            need,
            wanted_seconds=self._seconds_of(server, "wanted", holds=need.is_wanted),
            idle_seconds=self._seconds_of(server, "idle", holds=is_idle),
            down_seconds=self._seconds_of(server, "down", holds=self._fleet.state(server.name) != "closed"),
        )

    def _seconds_of(self, server: Server, what: str, *, holds: bool) -> float:
        """For how long it has held without a break, as far as this process has seen."""
        if not holds:
            self._since.pop((server.name, what), None)
            return 0.0
        now = self._monotonic()
        return now - self._since.setdefault((server.name, what), now)

    def _need(self, server: Server) -> Need:
        if self._fleet.mode(server.name) != "open":
            return Need(is_wanted=False, is_kept=False)
        waiting = self._ledger.waiting_streams()
        lacking = {stream for stream in self._streams(server) if self._is_lacking(server, stream)}
        hot_once = {stream for stream in lacking if self._has_hot(server, stream)}
        return Need(is_wanted=bool(lacking & waiting), is_kept=bool(lacking & (waiting | hot_once)))

    def _streams(self, server: Server) -> set[str]:
        every = {*BUILT_IN_STREAMS, *self._settings.streams}
        return {stream for stream in every if server in self._settings.route(stream)}

    def _is_lacking(self, server: Server, stream: str) -> bool:
        """No hot server takes the stream's mail now, or the operator has made this one hot."""
        fleet = self._fleet
        if fleet.weight(server.name, stream) > 0:
            return True
        return not any(fleet.weight(name, stream) > 0 for name in fleet.usable(stream))

    def _has_hot(self, server: Server, stream: str) -> bool:
        return any(self._fleet.weight(one.name, stream) > 0 for one in self._settings.route(stream))

    # ---- starting

    def _start(self, server: Server, before: StandbyState, failures: int) -> None:
        reason = _START_REASONS[before]
        seconds = server.activate_seconds + MARGIN_SECONDS
        if not self._ledger.begin_standby_turn(
            server.name, self._owner, before=before, state="starting", seconds=seconds, reason=reason
        ):
            return
        error = self._bring_up(server)
        if not error:
            self._end(server, "starting", "active", "it answers")
        elif self._stopping.is_set():
            self._end(server, "starting", "resting", "the worker that was starting it ends")
        else:
            self._fail(server, "starting", "resting", error, failures + 1)

    def _bring_up(self, server: Server) -> str:
        """Run its command, and wait until it answers; why it does not, or an empty text."""
        deadline = self._monotonic() + server.activate_seconds
        result = self._run(server, server.on_activate)
        if not result.ok:
            return result.error
        while True:
            left = max(0.2, deadline - self._monotonic())
            found = check_server(server, timeout_seconds=min(LONGEST_CHECK_SECONDS, left / 3))
            if found.ok:
                self._ledger.record_probe(
                    server.name,
                    error=None,
                    latency_seconds=found.latency_seconds,
                    certificate_until=found.certificate_until,
                )
                return ""
            if self._monotonic() >= deadline or self._stopping.wait(BETWEEN_CHECKS_SECONDS):
                return f"it did not answer within {server.activate_seconds:g} s: {found.detail}"

    # ---- stopping

    def _stop(self, server: Server, before: StandbyState, failures: int) -> None:
        timing = self._timing
        seconds = timing.settle_seconds + timing.leave_seconds + server.activate_seconds + MARGIN_SECONDS
        reason = "it is not needed any more" if before == "active" else "whoever had the turn is gone"
        if not self._ledger.begin_standby_turn(
            server.name, self._owner, before=before, state="stopping", seconds=seconds, reason=reason
        ):
            return
        kept_because = self._let_the_last_mail_out(server)
        if kept_because:
            self._end(server, "stopping", "active", kept_because)
            return
        result = self._run(server, server.on_deactivate) if server.on_deactivate else HookResult()
        if result.ok:
            self._end(server, "stopping", "resting", "it is not needed any more")
        elif self._stopping.is_set():
            self._end(server, "stopping", "active", "the worker that was stopping it ends")
        else:
            self._fail(server, "stopping", "active", result.error, failures + 1)

    def _let_the_last_mail_out(self, server: Server) -> str:
        """Wait until all processes see that it takes no more, and none of its mail is under way.

        Why it must go on, or an empty text. A server that is stopped over a mail at its dot would leave it
        uncertain.
        """
        self._stopping.wait(self._timing.settle_seconds)
        deadline = self._monotonic() + self._timing.leave_seconds
        while self._ledger.is_held(server.name):
            if self._monotonic() >= deadline:
                return "mail is still on its way through it"
            if self._stopping.wait(BETWEEN_CHECKS_SECONDS):
                break
        if self._stopping.is_set():
            return "the worker that was stopping it ends"
        return "it is needed again" if self._need(server).is_kept else ""

    # ---- what came of it

    def _run(self, server: Server, command: tuple[str, ...]) -> HookResult:
        result = run_hook(
            command,
            directory=self._settings.directory,
            within_seconds=server.activate_seconds,
            stop=self._stopping,
        )
        log.log(
            logging.INFO if result.ok else logging.WARNING,
            "a standby's command has run",
            extra={
                "server": server.name,
                "command": command[0],
                "error": result.error,
                "output": result.output,
            },
        )
        return result

    def _end(self, server: Server, before: StandbyState, state: StandbyState, reason: str) -> None:
        self._ledger.end_standby_turn(server.name, self._owner, before=before, state=state, reason=reason)
        self._since.clear()
        self._fleet.refresh_soon()
        log.warning("a standby changed", extra={"server": server.name, "to": state, "reason": reason})

    def _fail(
        self, server: Server, before: StandbyState, state: StandbyState, error: str, failures: int
    ) -> None:
        pause_seconds = self._timing.pause_seconds(failures, random.random())  # noqa: S311 - jitter
        self._ledger.end_standby_turn(
            server.name,
            self._owner,
            before=before,
            state=state,
            reason=error,
            is_failure=True,
            pause_seconds=pause_seconds,
        )
        self._fleet.refresh_soon()
        log.warning(
            "a standby could not be changed; it is tried again",
            extra={"server": server.name, "reason": error, "failures": failures},
        )
