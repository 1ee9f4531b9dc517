"""Durations and rates as an operator writes them: "90s", "2d", "200/s"."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_RATE = re.compile(r"([0-9]{1,15})\s*/\s*([smhd])")
_HIGHEST_PER_SECOND = 1_000_000
_LARGEST = 1e300

DURATION_FORM = 'a duration such as "90s", "5m", "1h" or "2d"'
RATE_FORM = 'a rate such as "200/s", "600/m", "1000/h" or "50000/d"'


@dataclass(frozen=True, kw_only=True)
class Rate:
    """At most `count` mails in every `period_seconds`."""

    count: int
    period_seconds: int

    @classmethod
    def parse(cls, text: str) -> Rate:
        """`"200/s"`, `"600/m"`, `"1000/h"`, `"50000/d"`. Raises ValueError that says what is allowed."""
        match = _RATE.fullmatch(text.strip())
        if match is None or int(match[1]) < 1:
            raise ValueError(f"{text!r} is not {RATE_FORM}")
        rate = cls(count=int(match[1]), period_seconds=_SECONDS[match[2]])
        if rate.per_second > _HIGHEST_PER_SECOND:
            raise ValueError(f"{text!r} is more than {_HIGHEST_PER_SECOND:,} mails a second")
        return rate

    @property
    def per_second(self) -> float:
        return self.count / self.period_seconds

    def __str__(self) -> str:
        unit = next(unit for unit, seconds in _SECONDS.items() if seconds == self.period_seconds)
        return f"{self.count}/{unit}"


def parse_duration_seconds(value: str | float) -> float:
    """Seconds of `"90s"`, `"5m"`, `"1h"`, `"2d"` or of a plain number. Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < _LARGEST else float("inf")
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        raise ValueError(f"{value!r} is not {DURATION_FORM}")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{value!r} is not {DURATION_FORM}, and more than 0")
    return seconds
