"""Waits that do not end at once: who is postponed gets a place, one after the other, as the limit allows."""

from __future__ import annotations

__all__ = ["Spread", "reach"]

HORIZON_SECONDS = 900.0
"""Places are not given further ahead: what they were given for may have been cancelled since."""
SOON_SECONDS = 10.0


def reach(wait_seconds: float) -> float:
    """How far places are given behind a wait that may be wrong, or over sooner: as long again, or 10 s."""
    return min(HORIZON_SECONDS, max(SOON_SECONDS, wait_seconds))


class Spread:
    """The next free place of each key. Pure but for what it remembers; one process's."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Spread: {len(self._next)} keys>"

    def wait_seconds(
        self,
        key: str,
        now: float,
        *,
        not_before_seconds: float,
        interval_seconds: float,
        horizon_seconds: float = HORIZON_SECONDS,
    ) -> float:
        """How long one more is to wait. Beyond the horizon it begins again where the first one was."""
        earliest = now + not_before_seconds
        place = max(self._next.get(key, 0.0), earliest)
        if place - earliest > horizon_seconds:
            place = earliest
        self._next[key] = place + min(interval_seconds, horizon_seconds)
        return place - now

    def forget_past(self, now: float) -> None:
        self._next = {key: place for key, place in self._next.items() if place > now}
