"""The servers' health, shared by all processes through Redis; each process on its own while Redis is away."""

import logging
import random as random_module
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from campaigns.breaker import Breaker, BreakerState

__all__ = ["Change", "HealthBoard", "Probe", "ServerHealth"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[Breaker, float], Breaker | None]

CALL_SECONDS = 0.2
AWAY_SECONDS = 2.0
"""How long Redis is left alone after it failed."""
KEPT_SECONDS = 86_400
PROBE_SECONDS = 20.0
SEEN_SECONDS = 0.2
"""How long a server seen well is believed to be, so that not every mail asks."""
MOST_ATTEMPTS = 20

# Replaces one field of the hash if it is still what the caller read: so the breaker's logic is the same
# Python with Redis and without.
SWAP = """
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if now ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
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
class Change:
    """A server's state went from `before` to `after`: an event, to be recorded by whoever is told."""

    server: str
    before: BreakerState
    after: BreakerState
    reason: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Leave to hand this server one mail now. `token` is empty while it is closed: nothing to give back."""

    server: str
    token: str = ""
    change: Change | None = None


class HealthBoard:
    """Who may be given mail. Never raises when Redis is away, and never blocks for more than about 0.5 s.

    `state_url`: redis-py URL; None keeps the board in this process. `clock`: epoch seconds; None is Redis's
    own TIME, which all processes share. Safe to use from several threads.
    """

    def __init__(
        self,
        state_url: str | None,
        namespace: str = "campaigns",
        clock: Callable[[], float] | None = None,
        *,
        random: Callable[[], float] = random_module.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = f"{namespace}:health"
        self._clock = clock
        self._random = random
        self._monotonic = monotonic
        self._client = None if state_url is None else connect(state_url)
        self._away_until = 0.0
        self._local: dict[str, Breaker] = {}
        self._seen_well: dict[str, float] = {}
        self._succeeded: set[str] = set()
        self._lock = threading.RLock()

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

    def snapshot(self) -> dict[str, ServerHealth]:
        """All servers of which anything is known; the others are closed."""
        shared = self._ask(self._read_all)
        if shared is None:
            with self._lock:
                now, breakers = self._now(), dict(self._local)
        else:
            now, breakers = shared
        return {name: health(name, breaker.at(now), now) for name, breaker in breakers.items()}

    def fault(self, server: str, reason: str) -> Change | None:
        """The server failed. Three times in a row open its breaker; so does once while it is half-open."""
        with self._lock:
            worked = server in self._succeeded
            self._succeeded.discard(server)
            self._seen_well.pop(server, None)

        def step(breaker: Breaker, now: float) -> Breaker:
            return breaker.after_fault(now, reason=reason, random=self._random(), after_success=worked)

        return self._change(server, step)[1]

    def success(self, server: str) -> Change | None:
        """The server did its work, whatever it said of the mail."""
        with self._lock:
            self._succeeded.add(server)
            if self._monotonic() < self._seen_well.get(server, 0.0):
                return None
        breaker, change = self._change(server, lambda breaker, now: breaker.after_success(now))
        if breaker.state is BreakerState.CLOSED:
            with self._lock:
                self._seen_well[server] = self._monotonic() + SEEN_SECONDS
        return change

    def may_probe(self, server: str, *, probe_seconds: float = PROBE_SECONDS) -> Probe | None:
        """Ask before each mail. Closed: always; open: never; half-open: for one mail at a time.

        Then tell what came of it (`success`, `fault` or `release`), or it is under way until it expires.
        """
        with self._lock:
            if self._monotonic() < self._seen_well.get(server, 0.0):
                return Probe(server=server)
        token = secrets.token_hex(8)
        breaker, change = self._change(server, lambda breaker, now: asked(breaker, now, token, probe_seconds))
        if breaker.state is BreakerState.CLOSED:
            return Probe(server=server)
        return Probe(server=server, token=token, change=change) if breaker.probe == token else None

    def release(self, probe: Probe) -> None:
        """The mail told nothing of the server (it was stopped, or never sent)."""
        if probe.token:
            self._change(probe.server, lambda breaker, now: breaker.released(probe.token))

    def set_full(self, server: str, until: float) -> None:
        """The server takes no more until then (epoch seconds). An earlier time never shortens a later one."""
        with self._lock:
            self._seen_well.pop(server, None)
        self._change(server, lambda breaker, now: breaker.filled(now, until=until))

    def set_full_for(self, server: str, seconds: float) -> None:
        """The same for a time from now, by the board's own clock."""
        with self._lock:
            self._seen_well.pop(server, None)
        self._change(server, lambda breaker, now: breaker.filled(now, until=now + seconds))

    def forget(self) -> None:
        """Close every breaker, as a flushed Redis would."""
        with self._lock:
            self._local.clear()
            self._seen_well.clear()
        self._ask(lambda client: client.delete(self._key))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _change(self, server: str, step: Step) -> tuple[Breaker, Change | None]:
        """Apply one step to one breaker, in Redis if it is there: the breaker then, and what changed."""
        pair = self._ask(lambda client: self._step_shared(client, server, step))
        if pair is None:
            pair = self._step_local(server, step)
        before, after = pair
        return after, changed(server, before, after)

    def _step_shared(self, client: redis.Redis, server: str, step: Step) -> tuple[Breaker, Breaker]:
        before = Breaker()
        for _ in range(MOST_ATTEMPTS):
            now, text = self._read(client, server)
            before = Breaker.from_json(text)
            after = step(before, now)
            if after is None or after == before:
                return before, before
            arguments = (server, text, after.to_json(), KEPT_SECONDS)
            if client.eval(SWAP, 1, self._key, *arguments):
                return before, after
        return before, before

    def _step_local(self, server: str, step: Step) -> tuple[Breaker, Breaker]:
        with self._lock:
            before = self._local.get(server, Breaker())
            after = step(before, self._now()) or before
            self._local[server] = after
            return before, after

    def _read(self, client: redis.Redis, server: str) -> tuple[float, str]:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hget(self._key, server)
        (seconds, microseconds), text = pipeline.execute()
        return self._shared_now(seconds, microseconds), text or ""

    def _read_all(self, client: redis.Redis) -> tuple[float, dict[str, Breaker]]:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hgetall(self._key)
        (seconds, microseconds), texts = pipeline.execute()
        breakers = {name: Breaker.from_json(text) for name, text in texts.items()}
        return self._shared_now(seconds, microseconds), breakers

    def _shared_now(self, seconds: int, microseconds: int) -> float:
        return self._clock() if self._clock is not None else seconds + microseconds / 1e6

    def _now(self) -> float:
        return self._clock() if self._clock is not None else time.time()

    def _ask(self, question: Callable[[redis.Redis], T]) -> T | None:
        """Redis's answer; None while it is away."""
        if self._client is None or self.is_away:
            return None
        try:
            return question(self._client)
        except (redis.RedisError, OSError) as error:
            self._away_until = self._monotonic() + AWAY_SECONDS
            log.warning(
                "health board is away, judging servers in this process", extra={"error": type(error).__name__}
            )
            return None


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


def asked(breaker: Breaker, now: float, token: str, seconds: float) -> Breaker | None:
    return breaker.probed(now, token=token, seconds=seconds)


def changed(server: str, before: Breaker, after: Breaker) -> Change | None:
    if before.state is after.state:
        return None
    return Change(server=server, before=before.state, after=after.state, reason=after.reason)


def health(name: str, breaker: Breaker, now: float) -> ServerHealth:
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
    )
