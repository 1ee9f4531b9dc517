"""How many of a server's mails went well and how many failed in the last while: a sliding window. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]

BUCKETS = 10
"""The window moves in steps of a tenth of its length."""


@dataclass(frozen=True)
class Tally:
    """`buckets`: (number of its tenth since the epoch, good, bad), the oldest first."""

    buckets: tuple[tuple[int, int, int], ...] = ()

    def plus(self, now: float, window_seconds: float, *, good: int = 0, bad: int = 0) -> Tally:
        """One with these added now, and without what is older than the window or of before a clock step."""
        current = self._number(now, window_seconds)
        kept = {number: (g, b) for number, g, b in self._within(current)}
        g, b = kept.get(current, (0, 0))
        kept[current] = (g + good, b + bad)
        return Tally(tuple((number, *counts) for number, counts in sorted(kept.items())))

    def counts(self, now: float, window_seconds: float) -> tuple[int, int]:
        """Good and bad of the last `window_seconds`."""
        within = self._within(self._number(now, window_seconds))
        return sum(good for _, good, _ in within), sum(bad for _, _, bad in within)

    def _within(self, current: int) -> list[tuple[int, int, int]]:
        return [bucket for bucket in self.buckets if current - BUCKETS < bucket[0] <= current]

    @staticmethod
    def _number(now: float, window_seconds: float) -> int:
        return int(now // (window_seconds / BUCKETS))
