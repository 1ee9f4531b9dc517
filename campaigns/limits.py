"""Limits that all processes keep to together, in Redis while it is there.

Redis keeps the numbers and its own clock; one script takes from several limits at once. What is counted by
hour and day is read from the ledger again when Redis has lost it. While Redis is away each process keeps to
its part of what is left.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol

import redis
from redis.exceptions import NoScriptError

from campaigns.absence import absence_of
from campaigns.errors import DatabaseUnavailable
from campaigns.health import connect
from campaigns.limit import Grant, Limit, Meter, bucketed

__all__ = ["Grant", "Limits", "Memory", "Request"]

log = logging.getLogger(__name__)

AWAY_SECONDS = 2.0
GENERATION_SECONDS = 600
"""Counts that nobody has asked for so long are read from the ledger again: who counted may have changed."""
READING_SECONDS = 30
READ_AGAIN_SECONDS = 60.0
"""While Redis is away, a process sees only in the ledger what the others have sent."""
SOON_SECONDS = 0.25
LOST_SECONDS = 1.0
MOST_KEYS = 500
TURN = "turn:"
"""Begins the names of limits that nobody configured: processes take turns at some work."""
_GONE = "limits are kept by each process alone"
_BACK = "limits are kept by all processes together again"
_LOST = -1


@dataclass(frozen=True, kw_only=True)
class Request:
    """So many mails that all of these limits have a say in. `wanted` 0: only look; less: give back.

    `processes`: how many share the limits, for the time when they cannot talk.
    """

    limits: tuple[Limit, ...]
    wanted: int
    processes: int = 1


class Memory(Protocol):
    """What was sent before, as it is kept durably, of the limits that are counted."""

    @property
    def name(self) -> str:
        """Another one where other things are counted."""

    def read(self) -> Iterable[tuple[Limit, Sequence[tuple[float, int]]]]:
        """For each counted limit: so many, so many seconds ago. Raises DatabaseUnavailable."""


class Limits:
    """`take` from limits. Never raises when Redis or the database is away. Safe to use from threads.

    Limits that are counted need a `memory`. `fills`: whether counts that Redis has lost are read from it for
    all; not by who only looks, whose configuration may not be the workers' yet: what he began to count,
    nobody would go on with. `clock`: epoch seconds; None is Redis's own time.
    """

    def __init__(  # noqa: PLR0913 - what varies, by keyword
        self,
        state_url: str | None,
        namespace: str = "campaigns",
        *,
        memory: Memory | None = None,
        fills: bool = True,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._client: Any = None if state_url is None else connect(state_url)
        self._memory = memory
        self._fills = fills
        self._generation = f"{namespace}:counts:{memory.name if memory else ''}"
        self._clock = clock
        self._monotonic = monotonic
        self._away_until = 0.0
        self._absence = absence_of(state_url, log, _GONE, _BACK)
        self._own = Meter()
        self._begun: set[str] = set()
        self._before = Meter()
        self._read_before_at = float("-inf")
        self._has_counted_alone = False
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._token = secrets.token_hex(6)

    def __repr__(self) -> str:
        where = "in this process" if self._client is None else "shared"
        return f"<Limits {self._namespace}: {where}>"

    def take(
        self, name: str, rate_per_second: float, wanted: int, *, burst_seconds: float, processes: int = 1
    ) -> Grant:
        """Up to `wanted` cells of the rate `name`; while Redis is away, one part of `processes`."""
        limit = Limit(name=name, count=rate_per_second, period_seconds=1.0, burst_seconds=burst_seconds)
        return self.take_all([Request(limits=(limit,), wanted=wanted, processes=processes)])[0]

    def take_all(self, requests: Sequence[Request]) -> list[Grant]:
        """A grant for each request, in one round trip."""
        if self._client is not None and self._monotonic() >= self._away_until:
            try:
                self._own_up()
                grants = self._take_shared(requests)
                self._read_before_at = float("-inf")
                self._absence.ends(self._monotonic())
                return grants
            except (redis.RedisError, OSError) as error:
                self._away_until = self._monotonic() + AWAY_SECONDS
                if _is_of_anybody(requests):
                    self._absence.goes_on(error, self._away_until)
        with self._lock:
            return [self._take_alone(request) for request in requests]

    def began(self, name: str, seconds: float) -> bool:
        """Whether this is the first that is told of `name`, by any process; it holds for so many seconds."""
        if self._client is None:
            is_new = name not in self._begun
            self._begun.add(name)
            return is_new
        key = f"{self._namespace}:{name}"
        try:
            is_first = bool(self._client.set(key, "1", nx=True, ex=int(seconds)))
            if not is_first:
                self._client.expire(key, int(seconds))
        except (redis.RedisError, OSError):
            return False
        return is_first

    def ended(self, name: str) -> bool:
        """Whether `name` had begun, and this is the first that is told of its end."""
        if self._client is None:
            was_begun = name in self._begun
            self._begun.discard(name)
            return was_begun
        try:
            return bool(self._client.delete(f"{self._namespace}:{name}"))
        except (redis.RedisError, OSError):
            return False

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _take_shared(self, requests: Sequence[Request]) -> list[Grant]:
        grants = self._call(requests)
        lost = [index for index, grant in enumerate(grants) if grant.granted == _LOST]
        if not lost:
            return grants
        if not self._fills:
            with self._lock:
                for index in lost:
                    grants[index] = self._take_alone(requests[index])
            return grants
        wait_seconds = self._restore()
        again = self._call([requests[index] for index in lost])
        for index, grant in zip(lost, again, strict=True):
            is_lost = grant.granted == _LOST
            grants[index] = Grant(granted=0, wait_seconds=wait_seconds) if is_lost else grant
        return grants

    def _own_up(self) -> None:
        """What went out while Redis was away is in the ledger alone: have the counts read from there."""
        if self._has_counted_alone:
            self._client.delete(self._generation)
            self._has_counted_alone = False

    def _call(self, requests: Sequence[Request]) -> list[Grant]:
        try:
            answers = self._ask(requests)
        except NoScriptError:  # all of them failed, and none took anything
            self._client.script_load(_script()[0])
            answers = self._ask(requests)
        return [_grant(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def _ask(self, requests: Sequence[Request]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        now = "" if self._clock is None else repr(self._clock())
        for request in requests:
            arguments = [self._namespace, now, request.wanted, *_arguments(request.limits)]
            pipeline.evalsha(_script()[1], 1, self._generation, *arguments)
        answers: list[Any] = pipeline.execute()
        return answers

    def _restore(self) -> float:
        """Fill the counts from the ledger, unless somebody else is at it; how long to wait if so.

        A broker that died meanwhile may remember that this process was at it, and no more.
        """
        if not self._reading.acquire(blocking=False):
            return SOON_SECONDS
        try:
            return self._restore_in_turn()
        finally:
            self._reading.release()

    def _restore_in_turn(self) -> float:
        turn = f"{self._generation}:reading"
        is_taken = not self._client.set(turn, self._token, nx=True, ex=READING_SECONDS)
        if is_taken and self._client.get(turn) not in {None, self._token}:
            return SOON_SECONDS
        try:
            self._write_counts(secrets.token_hex(6))
        except DatabaseUnavailable:
            log.warning("what was used of the limits cannot be read; nothing goes out until it can")
            return LOST_SECONDS
        finally:
            self._client.delete(turn)
        return SOON_SECONDS

    def _write_counts(self, generation: str) -> None:
        """First all counts under a name that nobody asks for yet, then the name, once for all processes."""
        counts = [] if self._memory is None else list(self._memory.read())
        now = self._shared_now()
        for start in range(0, len(counts), MOST_KEYS):
            pipeline = self._client.pipeline(transaction=False)
            for limit, ages in counts[start : start + MOST_KEYS]:
                key = f"{self._namespace}:count:{generation}:{limit.name}"
                pipeline.hset(key, mapping=bucketed(limit, ages, now))
                pipeline.expire(key, int(limit.period_seconds) + 2 * limit.bucket_seconds)
            pipeline.execute()
        self._client.set(self._generation, generation, nx=True, ex=GENERATION_SECONDS)

    def _shared_now(self) -> float:
        if self._clock is not None:
            return self._clock()
        seconds, microseconds = self._client.time()
        return float(seconds + microseconds / 1e6)

    def _take_alone(self, request: Request) -> Grant:
        now = self._clock() if self._clock is not None else time.time()
        is_counted = any(limit.is_counted for limit in request.limits)
        if is_counted and not self._knows_before(now):
            return Grant(granted=0, wait_seconds=LOST_SECONDS, limit=request.limits[0])
        parts = [self._part(limit, request.processes, now) for limit in request.limits]
        grant = self._own.take(parts, request.wanted, now)
        self._has_counted_alone |= is_counted and grant.granted > 0
        return replace(grant, wait_seconds=min(grant.wait_seconds, READ_AGAIN_SECONDS))

    def _part(self, limit: Limit, processes: int, now: float) -> Limit:
        before = self._before.used(limit, now) if limit.is_counted else 0
        return replace(limit, count=max(0.0, limit.count - before) / max(1, processes))

    def _knows_before(self, now: float) -> bool:
        """Whether what was sent before, by anybody, was read not long ago; own counts begin anew then."""
        if self._monotonic() - self._read_before_at < READ_AGAIN_SECONDS or self._memory is None:
            return True
        try:
            counts = list(self._memory.read())
        except DatabaseUnavailable:
            return False
        self._before.forget_counts()
        self._own.forget_counts()
        for limit, ages in counts:
            self._before.fill(limit, ages, now)
        self._read_before_at = self._monotonic()
        return True


@cache
def _script() -> tuple[str, str]:
    """The script, and the name that Redis knows it by."""
    source = files("campaigns").joinpath("limits.lua").read_text(encoding="utf-8")
    return source, sha1(source.encode(), usedforsecurity=False).hexdigest()


def _is_of_anybody(requests: Sequence[Request]) -> bool:
    """Whether somebody configured any of these limits."""
    return any(not limit.name.startswith(TURN) for request in requests for limit in request.limits)


def _arguments(limits: Sequence[Limit]) -> list[str | int]:
    return [
        argument
        for limit in limits
        for argument in (
            limit.name,
            repr(limit.count),
            repr(limit.interval_seconds),
            repr(limit.burst),
            repr(limit.period_seconds),
            limit.bucket_seconds,
        )
    ]


def _grant(request: Request, answer: Sequence[Any]) -> Grant:
    granted = int(answer[0])
    if granted == _LOST:
        return Grant(granted=_LOST, wait_seconds=0.0)
    number = int(answer[2])
    return Grant(
        granted=granted,
        wait_seconds=float(answer[1]),
        limit=request.limits[number - 1] if number else None,
        left=tuple(int(left) for left in answer[3:]),
    )
