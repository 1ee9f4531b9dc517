"""Which fault explains that a mail is uncertain. Pure.

A fault explains a mail that was at its dot while the fault was there, by that server or in that process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from campaigns.states import State
from tests.faults.history import Change, DeliverySeen, Fault, History

__all__ = ["Injected", "with_faults"]

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

    def explains(self, commit: Change, ended_at: float) -> bool:
        """Whether it can have met a mail between its commit point and when it became uncertain."""
        is_there = self.began_at - SLACK_SECONDS <= ended_at and commit.at <= self.healed_at + SLACK_SECONDS
        owner = commit.new_owner or ""
        is_its = commit.new_server == self.server or any(f"-{pid}-" in owner for pid in self.pids)
        return is_there and is_its


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
    commit = ended_at = None
    for change in history.changes_of.get(delivery.id, []):
        if change.new_state is State.COMMITTING:
            commit, ended_at = change, None
        elif change.new_state is State.UNCERTAIN and ended_at is None:
            ended_at = change.at
    if commit is None or ended_at is None:
        return -1
    return next((number for number, one in enumerate(injected) if one.explains(commit, ended_at)), -1)
