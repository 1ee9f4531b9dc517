"""The servers' health, shared by all processes through Redis; each process on its own while Redis is away."""

import logging
import random as random_module
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from campaigns.absence import absence_of
from campaigns.board import Board, Change, Heard, Rules, changes
from campaigns.breaker import Breaker, BreakerState, Fault
from campaigns.policies import BreakerPolicy

__all__ = ["Change", "HealthBoard", "Probe", "ServerHealth"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[Board, float], Board | None]

CALL_SECONDS = 0.2
AWAY_SECONDS = 2.0
"""How long Redis is left alone after it failed."""
_GONE = "health board is away, judging servers in this process"
_BACK = "the health board is back, all processes judge together again"
_ALONE = "one process alone, while Redis is away"
KEPT_SECONDS = 3 * 86_400
"""Longer than the day that a server may be full by its own word: its end is told, too."""
PROBE_SECONDS = 20.0
GATHER_SECONDS = 1.0
"""How long successes are gathered before they are told: not every mail is to cost a call."""
FIRST_SECONDS = 60
MOST_ATTEMPTS = 20
MOST_CHANGES = 1000

# Replaces the value if it is still what the caller read: so the logic is the same Python with Redis and
# without.
SWAP = """
local now = redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


@dataclass(frozen=True, kw_only=True)
class ServerHealth:
    """One server at one moment. Times are epoch seconds by the board's clock, which is not the database's:
    compare them with nothing. `is_full` and `rest_seconds`, until the cool-down and the fullness are over,
    hold at that moment. `full_until` is None when it is not full.
    """

    name: str
    state: BreakerState
    since: float
    reason: str
    open_until: float | None
    consecutive_faults: int
    full_until: float | None = None
    rest_seconds: float = 0.0
    share: float = 1.0
    """The part of its usual share that it is given: less than 1 while it gets its load back."""

    @property
    def is_full(self) -> bool:
        return self.full_until is not None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Leave to hand this server one mail now. `token` is empty while it is closed: nothing to give back."""

    server: str
    token: str = ""
    change: Change | None = None


@dataclass(kw_only=True)
class Seen:
    """What waits to be told of a server: successes, the last of them then, and perhaps a fault after them."""

    successes: int = 0
    worked_at: float = 0.0
    fault: Fault | None = None

    def heard(self, monotonic: float) -> Heard:
        seconds_ago = monotonic - self.worked_at if self.successes else 0.0
        return Heard(successes=self.successes, seconds_ago=seconds_ago, fault=self.fault)


class HealthBoard:
    """Who may be given mail. Never raises when Redis is away, and never blocks for more than about 0.5 s.

    `state_url`: redis-py URL; None keeps the board in this process. `clock`: epoch seconds; None is Redis's
    own TIME, which all processes share. `servers`: those that are configured. Safe to use from several
    threads. What changes here is told to exactly one of all processes, by `take_changes`.
    """

    def __init__(  # noqa: PLR0913 - what varies in tests, by keyword
        self,
        state_url: str | None,
        namespace: str = "campaigns",
        clock: Callable[[], float] | None = None,
        *,
        policy: BreakerPolicy | None = None,
        servers: Iterable[str] = (),
        random: Callable[[], float] = random_module.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = f"{namespace}:board"
        self._rules = Rules(policy=policy or BreakerPolicy(), servers=frozenset(servers))
        self._clock = clock
        self._random = random
        self._monotonic = monotonic
        self._client = None if state_url is None else connect(state_url)
        self._away_until = 0.0
        self._absence = absence_of(state_url, log, _GONE, _BACK)
        self._is_late = False
        self._local = Board()
        self._gathered: dict[str, list[Seen]] = {}
        self._told_at = monotonic()
        self._changes: deque[Change] = deque(maxlen=MOST_CHANGES)
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        where = "in this process" if self._client is None else "away" if self.is_away else "shared"
        return f"<HealthBoard {self._key}: {where}>"

    @property
    def is_away(self) -> bool:
        """Whether Redis failed just now and is left alone for a moment."""
        return self._client is not None and self._monotonic() < self._away_until

    @property
    def is_shared(self) -> bool:
        """Whether all processes see this board now."""
        return self._client is not None and not self.is_away

    @property
    def trouble(self) -> str:
        """Why nothing is known of the shared board now; empty if something is."""
        if not self.is_away:
            return ""
        return "did not answer in time" if self._is_late else "is not there"

    @property
    def policy(self) -> BreakerPolicy:
        return self._rules.policy

    def consider(self, servers: Iterable[str]) -> None:
        """These may be given mail as far as the operator has a say: the others do not count as left."""
        self._rules = Rules(policy=self._rules.policy, servers=frozenset(servers))

    # What is seen.

    def snapshot(self) -> dict[str, ServerHealth]:
        """All servers of which anything is known; the others are closed and whole. Changes nothing."""
        board, now = self._read()
        return self._healths(board, now)

    def look(self) -> dict[str, ServerHealth]:
        """The same, for those who work here: what time changed, and what was gathered, is written down."""
        board, now = self._read()
        if self._is_time_to_tell(board) or board.at(now, self._rules) != board:
            board, now = self._write(lambda board, _: board)[1:]
        return self._healths(board, now)

    def take_changes(self) -> list[Change]:
        """What changed by this process's doing since the last call: events that nobody else will record."""
        with self._lock:
            taken = list(self._changes)
            self._changes.clear()
        return taken

    def keep_changes(self, kept: Iterable[Change]) -> None:
        """Give back what could not be recorded yet."""
        with self._lock:
            self._changes.extendleft(reversed(list(kept)))

    # What is told.

    def fault(self, server: str, fault: Fault | str) -> Change | None:
        """The server failed a mail; a str is no more than the reason. The change of its breaker, if any."""
        self._gather(server, fault if isinstance(fault, Fault) else Fault(reason=fault))
        return self._tell(server)

    def success(self, server: str, *, token: str = "") -> Change | None:
        """The server did its work, whatever it said of the mail. `token`: of its trial, if it was one."""
        if not token:
            self._gather(server)
            return self._tell(server)
        return self._breaker_change(
            server, lambda board, now: board.after_trial(server, token, now, self._rules)
        )

    def count_success(self, server: str) -> None:
        """The same for one of very many mails: told within a second or so, by `look`. Never blocks."""
        self._gather(server)

    def probe_result(self, server: str, ok: bool, reason: str = "") -> Change | None:
        """An idle server was tried without a mail: failures in a row open it; an answer closes nothing."""
        error = "" if ok else reason or "no answer"
        return self._breaker_change(
            server, lambda board, now: board.after_check(server, error, now, self._rules, self._random())
        )

    def may_probe(self, server: str, *, probe_seconds: float | None = None) -> Probe | None:
        """Ask before each mail. Closed: always; open: never; half-open: for one mail at a time.

        Then tell what came of it with the probe's token (`success`, `fault` or `release`), or it is under way
        until it expires.
        """
        token = secrets.token_hex(8)
        seconds = PROBE_SECONDS + self.policy.slow_seconds if probe_seconds is None else probe_seconds

        def ask(board: Board, now: float) -> Board | None:
            return board.probed(server, now, self._rules, token=token, seconds=seconds)

        made, after, _ = self._write(ask)
        breaker = after.of(server)
        if breaker.state is BreakerState.CLOSED:
            return Probe(server=server)
        change = next((change for change in made if is_of_breaker(change, server)), None)
        return Probe(server=server, token=token, change=change) if breaker.probe == token else None

    def release(self, probe: Probe) -> None:
        """The mail told nothing of the server (it was stopped, or never sent)."""
        if probe.token:
            self._write(
                lambda board, _: board.having(probe.server, board.of(probe.server).released(probe.token))
            )

    def set_full(self, server: str, until: float, reason: str = "") -> None:
        """The server takes no more until then (epoch seconds). An earlier time never shortens a later one."""
        self._write(
            lambda board, now: board.having(server, board.of(server).filled(now, until=until, reason=reason))
        )

    def set_full_for(self, server: str, seconds: float, reason: str = "") -> None:
        """The same for a time from now, by the board's own clock."""
        reason = reason or f"it says that it is full for {seconds:.0f} s"
        self._write(
            lambda board, now: board.having(
                server, board.of(server).filled(now, until=now + seconds, reason=reason)
            )
        )

    def end_full(self, server: str, reason: str) -> bool:
        """The server may take mail before its time. False if it is not full, or the others cannot be told."""

        def end(board: Board, now: float) -> Board | None:
            breaker = board.of(server)
            return board.having(server, breaker.emptied(reason)) if breaker.is_full(now) else None

        made, _, _ = self._write(end)
        return any((one.server, one.kind, one.after) == (server, "limit", "open") for one in made)

    def is_first(self, what: str) -> bool:
        """Whether no other process asked so within a minute; each is the first while Redis is away."""
        key = f"{self._key}:{what}"
        answer = self._ask(lambda client: [client.set(key, "1", nx=True, ex=FIRST_SECONDS)])
        return answer is None or bool(answer[0])

    def forget(self) -> None:
        """Close every breaker, as a flushed Redis would."""
        with self._writing:
            self._local = Board()
            with self._lock:
                self._gathered.clear()
            self._ask(lambda client: client.delete(self._key))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    # How it is done.

    def _gather(self, server: str, fault: Fault | None = None) -> None:
        """Keep what was seen, in its order, until it is told together with whatever is told next."""
        with self._lock:
            seen = self._gathered.setdefault(server, [])
            if not seen or seen[-1].fault is not None:
                seen.append(Seen())
            if fault is None:
                seen[-1].successes += 1
                seen[-1].worked_at = self._monotonic()
            else:
                seen[-1].fault = fault

    def _is_time_to_tell(self, board: Board) -> bool:
        """Soon where somebody waits for it: a server that has faults to forget, or a step to pass."""
        with self._lock:
            servers = tuple(self._gathered)
        if not servers:
            return False
        is_due = self._monotonic() - self._told_at >= GATHER_SECONDS
        return is_due or not all(board.of(server).is_pristine for server in servers)

    def _tell(self, server: str) -> Change | None:
        """Tell what was gathered, unless another thread did that meanwhile."""
        with self._lock:
            is_told = not self._gathered
        return None if is_told else self._breaker_change(server, lambda board, _: board)

    def _breaker_change(self, server: str, step: Step) -> Change | None:
        made, _, _ = self._write(step)
        return next((change for change in made if is_of_breaker(change, server)), None)

    def _write(self, step: Step) -> tuple[list[Change], Board, float]:
        """Apply what time did, what was gathered, and one step: what changed, and the board and time then.

        One at a time, and kept in that order: who waits meanwhile finds that it was told already.
        """
        with self._writing:
            with self._lock:
                gathered, self._gathered = self._gathered, {}
            self._told_at = self._monotonic()

            def all_steps(board: Board, now: float) -> Board:
                heard = self._heard(board.at(now, self._rules), gathered, now)
                return step(heard, now) or heard

            shared = self._ask(lambda client: self._write_shared(client, all_steps))
            before, after, now = shared or self._write_local(all_steps)
            made = list(changes(before, after, self.policy))
            if shared is None and self._client is not None:
                made = [replace(change, reason=f"{change.reason} ({_ALONE})") for change in made]
            with self._lock:
                self._changes.extend(made)
        return made, after, now

    def _heard(self, board: Board, gathered: dict[str, list[Seen]], now: float) -> Board:
        for server, seen in gathered.items():
            heard = [one.heard(self._monotonic()) for one in seen]
            board = board.after(server, heard, now, self._rules, self._random())
        return board

    def _write_shared(
        self, client: redis.Redis, step: Callable[[Board, float], Board]
    ) -> tuple[Board, Board, float]:
        for _ in range(MOST_ATTEMPTS):
            now, text = self._fetch(client)
            before = Board.from_json(text)
            after = step(before, now)
            if after == before or client.eval(SWAP, 1, self._key, text, after.to_json(), KEPT_SECONDS):
                return before, after, now
        return before, before, now  # it never came to that; what was seen is seen again

    def _write_local(self, step: Callable[[Board, float], Board]) -> tuple[Board, Board, float]:
        before, now = self._local, self._now()
        self._local = step(before, now)
        return before, self._local, now

    def _read(self) -> tuple[Board, float]:
        fetched = self._ask(self._fetch)
        if fetched is None:
            return self._local, self._now()
        now, text = fetched
        return Board.from_json(text), now

    def _fetch(self, client: redis.Redis) -> tuple[float, str]:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.get(self._key)
        (seconds, microseconds), text = pipeline.execute()
        return self._shared_now(seconds, microseconds), text or ""

    def _healths(self, board: Board, now: float) -> dict[str, ServerHealth]:
        present = board.at(now, self._rules)
        return {name: health(name, breaker, now, self.policy) for name, breaker in present.breakers.items()}

    def _shared_now(self, seconds: int, microseconds: int) -> float:
        return self._clock() if self._clock is not None else seconds + microseconds / 1e6

    def _now(self) -> float:
        return self._clock() if self._clock is not None else time.time()

    def _ask(self, question: Callable[[redis.Redis], T]) -> T | None:
        """Redis's answer; None while it is away."""
        if self._client is None or self.is_away:
            return None
        try:
            answer = question(self._client)
        except (redis.RedisError, OSError) as error:
            self._away_until = self._monotonic() + AWAY_SECONDS
            self._is_late = isinstance(error, (redis.TimeoutError, TimeoutError))
            self._absence.goes_on(error, self._away_until)
            return None
        self._absence.ends(self._monotonic())
        return answer


def connect(state_url: str) -> redis.Redis:
    return cast(
        redis.Redis,
        cast(Any, redis.Redis).from_url(
            state_url,
            decode_responses=True,
            socket_connect_timeout=CALL_SECONDS,
            socket_timeout=CALL_SECONDS,
            retry=Retry(NoBackoff(), 0),
        ),
    )


def is_of_breaker(change: Change, server: str) -> bool:
    return change.kind == "breaker" and change.server == server


def health(name: str, breaker: Breaker, now: float, policy: BreakerPolicy) -> ServerHealth:
    open_until = breaker.open_until if breaker.state is BreakerState.OPEN else None
    full_until = breaker.full_until if breaker.is_full(now) else None
    return ServerHealth(
        name=name,
        state=breaker.state,
        since=breaker.since,
        reason=breaker.reason,
        open_until=open_until,
        consecutive_faults=breaker.faults,
        full_until=full_until,
        rest_seconds=max(0.0, (open_until or now) - now, (full_until or now) - now),
        share=breaker.percent(policy) / 100,
    )
