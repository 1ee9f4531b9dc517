"""Rates that all processes keep to together: a generic cell rate algorithm, in Redis while it is there.

The state of a rate is one number, the virtual time up to which it has been used; taking n cells moves it by
n intervals. Redis keeps the numbers and its own clock; while it is away each process keeps to its part.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from campaigns.health import connect

__all__ = ["Grant", "Limits", "take"]

log = logging.getLogger(__name__)

AWAY_SECONDS = 2.0
KEPT_SECONDS = 3600

# KEYS[1] the rate's key; ARGV: rate per second, wanted, burst in seconds, expiry in seconds
TAKE = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local rate, wanted, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local used = tonumber(redis.call('GET', KEYS[1])) or (now - 1 / rate)
if used < now - burst then used = now - burst end
if used > now + 1 / rate then used = now end
local granted = math.min(wanted, math.floor((now - used) * rate + 0.000001))
if granted < 0 then granted = 0 end
used = used + granted / rate
redis.call('SET', KEYS[1], string.format('%.6f', used), 'EX', ARGV[4])
return {granted, string.format('%.6f', used + 1 / rate - now)}
"""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """How many may go now, and after how many seconds asking again makes sense."""

    granted: int
    wait_seconds: float


def take(
    used: float | None, now: float, rate: float, wanted: int, burst_seconds: float
) -> tuple[Grant, float]:
    """The algorithm, for one process: the grant, and the virtual time up to which the rate is used then.

    `used`: the same from before, None at first; `now`, `burst_seconds`: seconds; `rate`: per second. What was
    not used for longer than `burst_seconds` is lost.
    """
    used = now - 1 / rate if used is None else min(max(used, now - burst_seconds), now + 1 / rate)
    granted = max(0, min(wanted, math.floor((now - used) * rate + 1e-6)))
    used += granted / rate
    return Grant(granted=granted, wait_seconds=max(0.0, used + 1 / rate - now)), used


class Limits:
    """`take` from a named rate. Never raises when Redis is away. Safe to use from threads."""

    def __init__(
        self,
        state_url: str | None,
        namespace: str = "campaigns",
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._client: Any = None if state_url is None else connect(state_url)
        self._script = self._client.register_script(TAKE) if self._client is not None else None
        self._monotonic = monotonic
        self._away_until = 0.0
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        where = "in this process" if self._client is None else "shared"
        return f"<Limits {self._namespace}: {where}>"

    def take(
        self, name: str, rate_per_second: float, wanted: int, *, burst_seconds: float, processes: int = 1
    ) -> Grant:
        """Up to `wanted` cells of the rate `name`; while Redis is away, one part of `processes`."""
        burst_seconds = max(burst_seconds, 1 / rate_per_second)
        if self._script is not None and self._monotonic() >= self._away_until:
            try:
                return self._take_shared(name, rate_per_second, wanted, burst_seconds)
            except (redis.RedisError, OSError) as error:
                self._away_until = self._monotonic() + AWAY_SECONDS
                log.warning("rates are kept by each process alone", extra={"error": type(error).__name__})
        with self._lock:
            rate = rate_per_second / max(1, processes)
            grant, self._used[name] = take(
                self._used.get(name), self._monotonic(), rate, wanted, max(burst_seconds, 1 / rate)
            )
            return grant

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _take_shared(self, name: str, rate: float, wanted: int, burst_seconds: float) -> Grant:
        assert self._script is not None
        key = f"{self._namespace}:rate:{name}"
        granted, wait = self._script(keys=[key], args=[repr(rate), wanted, repr(burst_seconds), KEPT_SECONDS])
        return Grant(granted=int(granted), wait_seconds=max(0.0, float(wait)))
