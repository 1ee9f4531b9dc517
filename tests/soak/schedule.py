"""What is done to the system, and when: a pure function of the seed.

Each lane is one thing that faults happen to, and has one fault at a time; the lanes know nothing of each
other, so faults of different lanes meet in all combinations, and those of one lane never. A lane's dice are
its own: what is planned for the others changes nothing in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.odd_worker import POINTS

__all__ = ["LANES", "OPERATORS", "SERVERS", "WORKERS", "Planned", "schedule"]

WORKERS = {
    "worker-1": ("primary",),
    "worker-2": ("secondary",),
    "worker-3": ("primary", "secondary"),
}
SERVERS = ("primary", "secondary")
OPERATORS = frozenset({"operator", "drills"})
"""Lanes of what an operator does; no faults, but they meet with all of them."""
FIRST_SECONDS = 5.0
LAST_SECONDS = 3.0
"""So long before the end everything is healed."""

Dice = random.Random
Make = Callable[[Dice], "_Idea"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One fault: in which lane, from when (seconds after the start) and for how long."""

    at: float
    seconds: float
    lane: str
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        details = "".join(f" {name}={value!r}" for name, value in self.details.items())
        return f"{self.at:8.1f} s  {self.lane:<10} {self.kind}{details} for {self.seconds:.1f} s"

    @property
    def is_fault(self) -> bool:
        return self.lane not in OPERATORS


@dataclass(frozen=True, kw_only=True)
class _Idea:
    kind: str
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)


def schedule(seed: int, seconds: float, *, dialect: str = "sqlite") -> list[Planned]:
    """All that is planned for a soak of so many seconds, in the order of its beginnings."""
    plans = [planned for lane in LANES for planned in _lane(lane, seed, seconds, dialect)]
    return sorted(plans, key=lambda planned: (planned.at, planned.lane))


def _lane(lane: str, seed: int, seconds: float, dialect: str) -> Iterator[Planned]:
    dice = Dice(f"{seed} {lane}")
    rest_seconds, ideas = LANES[lane]
    makers = ideas.get(dialect, ideas.get("", []))
    at = FIRST_SECONDS
    while True:
        at = round(at + rest_seconds * dice.uniform(0.2, 1.8), 1)
        idea = dice.choice(makers)(dice)
        if at + idea.seconds > seconds - LAST_SECONDS:
            return
        yield Planned(at=at, seconds=idea.seconds, lane=lane, kind=idea.kind, details=idea.details)
        at += idea.seconds


def _lasting(kind: str, least: float, most: float, **choices: tuple[Any, ...]) -> Make:
    """A fault of so many seconds, and one of each of the choices."""

    def make(dice: Dice) -> _Idea:
        seconds = round(dice.uniform(least, most), 1)
        return _Idea(
            kind=kind, seconds=seconds, details={name: dice.choice(of) for name, of in choices.items()}
        )

    return make


def _misbehaviour(dice: Dice) -> _Idea:
    """A mail server that does something wrong in some phase, to many of its mails or to all."""
    action = dice.choice(
        (
            "reply", "reply", "delay", "drop", "stall", "drip", "garbage", "oversized", "cut", "inject",
            "accept-drop", "accept-stall",
        )
    )  # fmt: skip
    phases = ("greeting", "ehlo", "mail", "rcpt", "data", "body", "dot", "dot", "every")
    rule: dict[str, Any] = {
        "phase": "dot" if action.startswith("accept") else dice.choice(phases),
        "action": action,
        "probability": dice.choice((0.02, 0.1, 0.5, 1.0)),
    }
    if action == "reply":
        rule["reply"] = dice.choice(("421 4.3.2 closing", "451 4.3.0 not now", "450 4.2.1 busy"))
    if action == "delay":
        rule["seconds"] = dice.choice((0.5, 2.0, 6.0))
    if action == "drip":
        rule["seconds"] = 0.3
    if rule["phase"] == "body":
        rule["after"] = dice.choice((0, 200))
    return _Idea(kind="misbehave", seconds=round(dice.uniform(1.0, 8.0), 1), details=rule)


_WORKER = [
    _lasting("kill", 0.2, 4.0),
    _lasting("kill", 0.0, 0.2),
    _lasting("stop", 1.0, 12.0),
    _lasting("end", 0.0, 3.0),
    _lasting("doom", 8.0, 14.0, point=POINTS, passage=(1, 5, 20, 60)),
    _lasting("doze", 8.0, 14.0, point=POINTS, passage=(1, 5, 20, 60)),
]
_SERVER = [
    _lasting("kill", 0.5, 8.0),
    _lasting("suspend", 0.5, 10.0),
    _misbehaviour,
    _misbehaviour,
    _misbehaviour,
    _lasting("hold", 1.0, 10.0, way=("both", "to the server", "to the client")),
    _lasting("lose", 1.0, 6.0, way=("to the server", "to the client")),
    _lasting("reset", 0.0, 0.1),
    _lasting("refuse", 1.0, 8.0),
    _lasting("cut", 1.0, 6.0, way=("to the server", "to the client"), octets=(60, 300, 700, 1500)),
    _lasting("slow", 1.0, 6.0, latency=(0.05, 0.4)),
]
_BROKER = [
    _lasting("kill", 0.2, 6.0, keeps=(True, False)),
    _lasting("flush", 0.0, 0.1),
    _lasting("suspend", 1.0, 10.0),
    _lasting("full", 1.0, 6.0),
]
_DATABASE = {
    "sqlite": [_lasting("lock", 0.5, 9.0)],
    "postgresql": [
        _lasting("kill", 0.2, 6.0),
        _lasting("read-only", 0.5, 6.0),
        _lasting("hold", 0.5, 8.0),
        _lasting("reset", 0.0, 0.1),
        _lasting("unanswered", 2.0, 6.0, times=(1, 5, 20)),
    ],
}


def _on_a_campaign(kind: str, least: float, most: float, **choices: tuple[Any, ...]) -> Make:
    """`pick`: which campaign, from the oldest (0) to the newest (1) of those that it can be done to."""

    def make(dice: Dice) -> _Idea:
        idea = _lasting(kind, least, most, **choices)(dice)
        return _Idea(
            kind=kind, seconds=idea.seconds, details={**idea.details, "pick": round(dice.random(), 3)}
        )

    return make


_OPERATOR = [
    _on_a_campaign("pause", 0.5, 8.0),
    _on_a_campaign("pause", 0.5, 8.0),
    _on_a_campaign("retry", 0.0, 0.1, state=("failed", "uncertain", "uncertain")),
    _on_a_campaign("cancel", 0.0, 0.1),
    _lasting("drain", 1.0, 10.0, server=SERVERS),
    _lasting("close", 1.0, 10.0, server=SERVERS),
    _lasting("weigh", 1.0, 20.0, server=SERVERS, weight=(0, 1, 100)),
]
_DRILLS = [_lasting("drill", 4.0, 8.0, server=SERVERS)]

LANES: Mapping[str, tuple[float, Mapping[str, list[Make]]]] = {
    **{name: (20.0, {"": _WORKER}) for name in WORKERS},
    **{name: (22.0, {"": _SERVER}) for name in SERVERS},
    "broker": (40.0, {"": _BROKER}),
    "database": (45.0, _DATABASE),
    "operator": (15.0, {"": _OPERATOR}),
    "drills": (100.0, {"": _DRILLS}),
}
"""By name: the mean rest between two faults in seconds, and what may be done, by database or anywhere."""
