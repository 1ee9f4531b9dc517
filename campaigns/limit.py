"""A limit, and the arithmetic of keeping to several at once: what limits.lua does in Redis, for one process.

Seconds and minutes are smooth: the state is one number, the virtual time up to which the rate has been used,
and n mails move it by n intervals (a generic cell rate algorithm). Hours and days are counted in buckets, so
that no window of that length, wherever it begins, sees more than the limit. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Grant", "Limit", "Meter", "bucketed"]

BUCKET_SECONDS = {3600: 60, 86400: 900}
BURST_SECONDS = {1: 0.2, 60: 1.0}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """At most `count` mails in `period_seconds`; smooth with that burst, or counted in buckets (not 0)."""

    name: str
    count: float
    period_seconds: float
    burst_seconds: float = 0.0
    bucket_seconds: int = 0
    text: str = ""

    @classmethod
    def of(cls, name: str, count: int, period_seconds: int, text: str) -> Limit:
        """For a period as operators write it: seconds and minutes are smooth, hours and days counted."""
        return cls(
            name=f"{name}/{period_seconds}",
            count=count,
            period_seconds=period_seconds,
            burst_seconds=BURST_SECONDS.get(period_seconds, 0.0),
            bucket_seconds=BUCKET_SECONDS.get(period_seconds, 0),
            text=text,
        )

    @property
    def is_counted(self) -> bool:
        return self.bucket_seconds > 0

    @property
    def interval_seconds(self) -> float:
        """Between two mails at that rate."""
        return self.period_seconds / self.count if self.count > 0 else self.period_seconds

    @property
    def burst(self) -> float:
        """What may be caught up of a time without mail: one mail at least."""
        return max(self.burst_seconds, self.interval_seconds)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """How many may go now, and after how many seconds one more may.

    `limit` is the one that is waited for longest; `left`: what each limit allows beside the granted.
    """

    granted: int
    wait_seconds: float
    limit: Limit | None = None
    left: tuple[int, ...] = ()


def bucketed(limit: Limit, ages: Iterable[tuple[float, int]], now: float) -> dict[int, int]:
    """Counts by bucket, of so many mails so many seconds ago."""
    counts: dict[int, int] = {}
    for age_seconds, count in ages:
        bucket = math.floor((now - age_seconds) / limit.bucket_seconds)
        counts[bucket] = counts.get(bucket, 0) + count
    return counts


class Meter:
    """What is used of limits, by their names. Times are seconds of any clock that does not go back far."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Meter: {len(self._used)} smooth, {len(self._counts)} counted>"

    def take(self, limits: Sequence[Limit], wanted: int, now: float) -> Grant:
        """As many of `wanted` as all limits allow, taken from each; less than 0 gives so many back."""
        left = [self.left(limit, now) for limit in limits]
        granted = max(0, min([wanted, *left])) if wanted > 0 else 0
        if cells := granted if wanted > 0 else wanted:
            for limit in limits:
                self._move(limit, cells, now)
        waits = [self._wait(limit, now) for limit in limits]
        wait_seconds = max(waits, default=0.0)
        return Grant(
            granted=granted,
            wait_seconds=wait_seconds,
            limit=limits[waits.index(wait_seconds)] if limits else None,
            left=tuple(one - granted for one in left),
        )

    def left(self, limit: Limit, now: float) -> int:
        if limit.is_counted:
            return math.floor(limit.count) - self.used(limit, now)
        if limit.count <= 0:
            return 0
        return math.floor((now - self._used_until(limit, now)) / limit.interval_seconds + 1e-6)

    def used(self, limit: Limit, now: float) -> int:
        """Of a counted limit: what may have gone out within its period."""
        return sum(self._window(limit, now).values())

    def fill(self, limit: Limit, ages: Iterable[tuple[float, int]], now: float) -> None:
        """What was sent before: so many, so many seconds ago."""
        self._counts[limit.name] = bucketed(limit, ages, now)

    def forget_counts(self) -> None:
        self._counts.clear()

    def _used_until(self, limit: Limit, now: float) -> float:
        used = self._used.get(limit.name, now - limit.interval_seconds)
        is_of_the_future = used > now + limit.interval_seconds  # the clock was set back
        return now - limit.interval_seconds if is_of_the_future else max(used, now - limit.burst)

    def _window(self, limit: Limit, now: float) -> dict[int, int]:
        first = math.floor((now - limit.period_seconds) / limit.bucket_seconds)
        last = math.floor((now + limit.period_seconds) / limit.bucket_seconds)
        counts = self._counts.get(limit.name, {})
        return {bucket: count for bucket, count in counts.items() if first <= bucket <= last}

    def _move(self, limit: Limit, cells: int, now: float) -> None:
        if not limit.is_counted:
            self._used[limit.name] = self._used_until(limit, now) + cells * limit.interval_seconds
            return
        counts = self._counts[limit.name] = self._window(limit, now)
        bucket = math.floor(now / limit.bucket_seconds)
        counts[bucket] = max(0, counts.get(bucket, 0) + cells)

    def _wait(self, limit: Limit, now: float) -> float:
        if not limit.is_counted:
            return max(0.0, self._used_until(limit, now) + limit.interval_seconds - now)
        window = self._window(limit, now)
        over = sum(window.values()) + 1 - math.floor(limit.count)
        for bucket in sorted(window):
            if over <= 0:
                break
            over -= window[bucket]
            wait_seconds = (bucket + 1) * limit.bucket_seconds + limit.period_seconds - now
            if over <= 0:
                return wait_seconds
        return 0.0 if over <= 0 else limit.period_seconds
