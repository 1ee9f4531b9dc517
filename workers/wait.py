"""What an attempt waits for: how long the server has owed it an answer, now and at most."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from campaigns.reply import Phase

__all__ = ["AwakeClock", "Wait"]

MOST_BETWEEN_TICKS_SECONDS = 1.0


class AwakeClock:
    """Counts the seconds in which this process was awake: one that was suspended must not blame the servers.

    Somebody ticks it several times a second; without a tick it goes on for a moment only.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted = 0.0
        self._ticked_at = clock()

    def __repr__(self) -> str:
        return f"<AwakeClock: {self():.1f} s>"

    def __call__(self) -> float:
        """Seconds since some moment."""
        return self._counted + min(self._clock() - self._ticked_at, MOST_BETWEEN_TICKS_SECONDS)

    def tick(self) -> None:
        self._counted, self._ticked_at = self(), self._clock()


class Wait:
    """One attempt's: `phase` is what the server was asked and has not answered; None: nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.phase: Phase | None = None
        self._clock = clock
        self._since = 0.0
        self._slowest_seconds = 0.0

    def __repr__(self) -> str:
        waiting = f"{self.phase} for {self.seconds:.1f} s" if self.phase is not None else "nothing"
        return f"<Wait: {waiting}>"

    @property
    def seconds(self) -> float:
        """How long it has been waiting for this answer."""
        return 0.0 if self.phase is None else self._clock() - self._since

    @property
    def slowest_seconds(self) -> float:
        """How long the slowest answer took, or has taken so far."""
        return max(self._slowest_seconds, self.seconds)

    def begin(self, phase: Phase) -> None:
        """The server is asked something, and has answered what it was asked before."""
        self.end()
        self.phase, self._since = phase, self._clock()

    def go_on(self) -> None:
        """It did a part: the time begins anew."""
        if self.phase is not None:
            self.begin(self.phase)

    def end(self) -> None:
        self._slowest_seconds = self.slowest_seconds
        self.phase = None

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The server is asked something before, and has answered after."""
        self.begin(phase)
        try:
            yield
        finally:
            self.end()
