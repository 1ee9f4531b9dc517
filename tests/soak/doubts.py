"""Which fault explains that a mail is uncertain. Pure.

A fault explains a mail whose reply was waited for while the fault was there, by that server or in that
process. What the sweep has made uncertain is still resolved by its own late reply, until the dot's deadline.
If it became uncertain only after that (the sweep was late, or a reply in hand could not be recorded), a fault
until then explains it, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from campaigns.states import State
from tests.faults.history import Change, DeliverySeen, Fault, History

__all__ = ["DOT_SECONDS", "Injected", "unexplained", "with_faults"]

DOT_SECONDS = 15.0
"""The deadline of the reply to a dot. A busy machine needs far less, so every doubt must have its fault."""

SLACK_SECONDS = 1.0
"""Between a fault's effect and its note, and between a transaction's time and its dot."""


@dataclass(frozen=True, kw_only=True)
class Injected:
    """A fault that was injected, with its times. Doubts come from `server`, or from the processes `pids`."""

    kind: str
    target: str
    began_at: float
    healed_at: float
    server: str | None = None
    pids: Sequence[int] = ()

    def explains(self, commit: Change, until: float) -> bool:
        """Whether it can have met a mail between its commit point and the last moment for its outcome."""
        is_there = self.began_at - SLACK_SECONDS <= until and commit.at <= self.healed_at + SLACK_SECONDS
        owner = commit.new_owner or ""
        is_its = commit.new_server == self.server or any(f"-{pid}-" in owner for pid in self.pids)
        return is_there and is_its


def unexplained(history: History, injected: Sequence[Injected]) -> list[int]:
    """The deliveries that are uncertain without a fault that explains it."""
    doubts = [one for one in history.deliveries if one.state is State.UNCERTAIN]
    return [one.id for one in doubts if _explanation(history, one, injected) < 0]


def with_faults(history: History, injected: Sequence[Injected]) -> History:
    """The history with these faults, each of which may have left as uncertain as many as it explains."""
    counts: Counter[int] = Counter()
    for delivery in history.deliveries:
        if delivery.state is State.UNCERTAIN:
            counts[_explanation(history, delivery, injected)] += 1
    faults = [
        Fault(
            kind=one.kind,
            target=one.target,
            began_at=one.began_at,
            healed_at=one.healed_at,
            may_leave_uncertain=counts[number],
        )
        for number, one in enumerate(injected)
    ]
    return replace(history, faults=faults)


def _explanation(history: History, delivery: DeliverySeen, injected: Sequence[Injected]) -> int:
    """The number of the first fault that explains it; -1 if none does."""
    doubt = history.doubt_of(delivery.id)
    if doubt is None:
        return -1
    commit, ended_at = doubt
    until = max(ended_at, commit.at + DOT_SECONDS)
    return next((number for number, one in enumerate(injected) if one.explains(commit, until)), -1)
