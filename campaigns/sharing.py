"""Sharing by capacity: when mail leaves the weights for a server that has nothing to do. Pure.

The weights hold while every server keeps up. One that its limits hold, or that is slow beside the others,
does not; then the others take what finds no room there, and some of what waits there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Load", "Move", "moves", "spills"]

SLOW_FACTOR = 3.0
"""A server that could send so many times less than another is slow; below that, the weights count."""
LEAST_SECONDS = 2.0
"""What a server works off within this time is not worth moving."""
FEWEST_MOVED = 5


@dataclass(frozen=True, kw_only=True)
class Load:
    """How one server does. `room`: how many more may be queued for it. Rates are mails per second.

    `capacity_per_second`: what it would send if it were kept busy; None while that is not known.
    `is_limited`: what is queued is as much as its limits will let out soon. `is_stuck`: nothing has left its
    queue for a while.
    """

    queued: int
    room: int
    sent_per_second: float = 0.0
    capacity_per_second: float | None = None
    is_limited: bool = False
    is_stuck: bool = False

    @property
    def waiting_seconds(self) -> float:
        """How long what is queued takes at its pace."""
        if not self.queued:
            return 0.0
        return self.queued / self.sent_per_second if self.sent_per_second > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Move:
    """Give `count` of what waits for `source` to `target`."""

    source: str
    target: str
    count: int


def spills(loads: Mapping[str, Load]) -> bool:
    """Whether one of these servers holds up the rest: its share should go to whoever has room."""
    return any(
        load.room <= 0 and not keeps_up(name, loads) and any_has_room(loads, without=name)
        for name, load in loads.items()
    )


def keeps_up(name: str, loads: Mapping[str, Load]) -> bool:
    load = loads[name]
    if load.is_limited or load.is_stuck:
        return False
    own = load.capacity_per_second
    best = max(
        (other.capacity_per_second or 0.0 for server, other in loads.items() if server != name), default=0.0
    )
    return own is None or own * SLOW_FACTOR >= best


def any_has_room(loads: Mapping[str, Load], *, without: str) -> bool:
    return any(load.room > 0 for name, load in loads.items() if name != without)


def moves(loads: Mapping[str, Load]) -> list[Move]:
    """What should leave long queues of servers that do not keep up, for servers that have run dry."""
    slow = [name for name in loads if not keeps_up(name, loads)]
    dry = [name for name in loads if name not in slow and is_dry(loads[name])]
    found = []
    for target in dry:
        for source in slow:
            count = worth_moving(loads[source], loads[target])
            if count >= FEWEST_MOVED:
                found.append(Move(source=source, target=target, count=count // len(dry)))
    return [move for move in found if move.count > 0]


def is_dry(load: Load) -> bool:
    return load.queued == 0 and load.room > 0


def worth_moving(source: Load, target: Load) -> int:
    """As much as lets both end at the same time; nothing of a queue that is worked off in a moment."""
    if source.waiting_seconds <= LEAST_SECONDS:
        return 0
    pace, other = source.sent_per_second, target.capacity_per_second or source.sent_per_second
    part = other / (pace + other) if pace + other > 0 else 0.5
    return min(int(source.queued * part), target.room)
