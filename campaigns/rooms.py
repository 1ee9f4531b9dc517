"""How many more messages each server's queue takes now, ordinary and urgent ones apart."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from campaigns.allowance import Allowance
from campaigns.fleet import LIMIT_SECONDS, Fleet
from campaigns.publishing import is_urgent
from campaigns.settings import Settings
from campaigns.sharing import Load
from campaigns.window import Window

__all__ = ["Rooms"]

WINDOW_PER_CONNECTION = 5
PROBES = 2
"""Real mails that may wait for a half-open server."""
Key = tuple[str, bool]
"""A server, and whether it is its urgent mail."""


class Rooms:
    """One turn's view is `look`. Belongs to one thread.

    Urgent mail has a window of its own: however much other mail waits, it finds a place, and its messages
    overtake what is queued.
    """

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        allowance: Allowance,
        *,
        most: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._allowance = allowance
        self._most = most
        self._monotonic = monotonic
        self._windows: dict[Key, Window] = {}
        self._queued: Mapping[Key, int] = {}
        self._room: dict[Key, int] = {}
        self._before: dict[Key, int] = {}

    def __repr__(self) -> str:
        sizes = (f"{name}{' urgent' * urgent} {w.size}" for (name, urgent), w in self._windows.items())
        return f"<Rooms: {', '.join(sizes)}>"

    def look(self, queued_by_stream: Mapping[tuple[str, str], int]) -> None:
        """Take in what is queued now, by server and stream."""
        queued: Counter[Key] = Counter()
        for (name, stream), count in queued_by_stream.items():
            queued[name, is_urgent(stream)] += count
        self._queued = queued
        now = self._monotonic()
        for server in self._settings.servers:
            for urgent in (True, False):
                self._room[server.name, urgent] = self._room_of(server.name, urgent, now)
        self._before = dict(self._room)

    def of(self, urgent: bool) -> dict[str, int]:
        """What may still be queued for each server; see `take`."""
        return {server.name: self._room[server.name, urgent] for server in self._settings.servers}

    def take(self, server: str, urgent: bool, count: int = 1) -> None:
        """So many places are taken. A probe's place, or a limit's, is one for all kinds of mail."""
        self._room[server, urgent] -= count
        if self._fleet.state(server) == "half-open" or self._is_limited(server):
            self._room[server, not urgent] -= count

    def close_turn(self) -> None:
        """All that this turn takes was taken: windows that were used up may grow."""
        for key, window in self._windows.items():
            window.took(self._before[key] - self._room[key], self._before[key])

    def load(self, server: str) -> Load:
        """How the server does with its ordinary mail."""
        window = self._windows.get((server, False))
        readers = self._fleet.readers
        return Load(
            queued=self._queued.get((server, False), 0),
            room=self._room[server, False],
            sent_per_second=readers.sent_per_second.get(server, 0.0),
            capacity_per_second=readers.capacity_per_second.get(server),
            is_limited=self._is_limited(server) and self._allowed(server) <= 0,
            is_stuck=window is not None and window.is_stuck(self._monotonic()),
        )

    def _room_of(self, server: str, urgent: bool, now: float) -> int:
        if server in self._fleet.off():
            return 0
        state = self._fleet.state(server)
        queued = self._queued.get((server, urgent), 0)
        if state == "open":
            return 0
        if state == "half-open":
            return max(0, PROBES - self._queued_in_all(server))
        rate = self._fleet.readers.sent_per_second.get(server, 0.0)
        room = min(self._window(server, urgent).look(queued, rate, now), self._most)
        return max(0, min(room, self._allowed(server)))

    def _allowed(self, server: str) -> int:
        """How many more its limits will let out soon, beside what is queued."""
        return self._allowance.room(server, LIMIT_SECONDS) - self._queued_in_all(server)

    def _queued_in_all(self, server: str) -> int:
        return self._queued.get((server, True), 0) + self._queued.get((server, False), 0)

    def _is_limited(self, server: str) -> bool:
        return self._settings.server(server).is_limited

    def _window(self, server: str, urgent: bool) -> Window:
        processes = max(1, self._fleet.readers.processes.get(server, 1))
        floor = WINDOW_PER_CONNECTION * self._settings.server(server).connections * processes
        window = self._windows.setdefault((server, urgent), Window(floor=floor))
        window.floor = floor
        return window
