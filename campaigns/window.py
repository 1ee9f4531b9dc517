"""How many messages may wait in one server's queue: enough to keep it busy, few enough to move quickly."""

from dataclasses import dataclass, field

__all__ = ["Window"]

MOST = 4_000
SECONDS_OF_WORK = 4.0
STUCK_SECONDS = 10.0


@dataclass(kw_only=True)
class Window:
    """Doubles while its server empties it, shrinks to a few seconds of work when the server is slower.

    `floor` is what its connections need to be busy at all. Times are seconds of any one clock.
    """

    floor: int
    size: int = 0
    _filled: bool = False
    _queued: int = 0
    _moved_at: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.size = max(self.size, self.floor)

    def look(self, queued: int, sent_per_second: float, now: float) -> int:
        """Adapt to what is seen now; returns how many more fit."""
        if queued < self._queued or queued == 0 or self._moved_at == 0.0:
            self._moved_at = now
        self._queued = queued
        wanted = max(self.floor, int(sent_per_second * SECONDS_OF_WORK))
        if self._filled and queued < self.size / 2:
            self.size = min(self.size * 2, MOST)
        elif queued >= self.size / 2 and self.size > 2 * wanted:
            self.size = max(wanted, int(self.size * 0.8))
        return max(0, self.size - queued)

    def took(self, count: int, room: int) -> None:
        """Say how many of `room` were used; only a window that was the limit may grow."""
        self._filled = count >= room > 0
        self._queued += count

    def is_stuck(self, now: float) -> bool:
        """Whether nothing has left the queue for a while."""
        return self._queued > 0 and now - self._moved_at > STUCK_SECONDS
