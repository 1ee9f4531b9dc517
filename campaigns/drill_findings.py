"""What a drill has shown: from what became of its mail to the figures and the verdict. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from campaigns.ledger import DrillAttempt, DrillResult
from campaigns.states import ALIVE, State

__all__ = ["LONGEST_SWITCH_SECONDS", "Findings"]

LONGEST_SWITCH_SECONDS = 10.0
"""A drill has failed if the first mail went out through another server later than that."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The drill's mail as it stands. The server counted as dead from `since` until `until` (epoch seconds).

    `states` are those of all its mails by delivery; those in `returning` were sent when the server was alive
    again. `broken_off`: why it was ended early, if it was; what still waits is not lost then.
    """

    server: str
    since: float
    until: float
    states: Mapping[int, State] = field(default_factory=dict)
    attempts: Sequence[DrillAttempt] = ()
    returning: Collection[int] = frozenset()
    detection_seconds: float | None = None
    note: str = ""
    broken_off: str = ""

    def result(self) -> DrillResult:
        """The figures, and whether the drill was passed; its reason says why not, or who took over."""
        problems = self.problems()
        return DrillResult(
            status="failed" if problems else "passed",
            detection_seconds=self.detection_seconds,
            switch_seconds=self.switch_seconds,
            return_seconds=self.return_seconds,
            recipients=len(self.states),
            sent=self._count(State.SENT),
            lost=self.lost,
            duplicates=self.duplicates,
            uncertain=self._count(State.UNCERTAIN),
            reason="; ".join(problems or [*self._successes(), *filter(None, [self.note])]),
        )

    @property
    def switch_seconds(self) -> float | None:
        """From the server's death to the first mail that another server accepted."""
        times = [one.finished_at for one in self._accepted_meanwhile() if one.server != self.server]
        return max(0.0, min(times) - self.since) if times else None

    @property
    def return_seconds(self) -> float | None:
        """From the server's return to the first mail that it accepted again."""
        times = [
            one.finished_at
            for one in self.attempts
            if one.outcome == State.SENT and one.delivery_id in self.returning and one.server == self.server
        ]
        return max(0.0, min(times) - self.until) if times else None

    @property
    def duplicates(self) -> int:
        """Mails that were accepted more than once."""
        times = Counter(one.delivery_id for one in self.attempts if one.outcome == State.SENT)
        return sum(1 for n in times.values() if n > 1)

    @property
    def lost(self) -> int:
        """Mails of which nothing came, although no recipient's side refused or deferred them."""
        if self.broken_off:
            return 0
        waiting = {delivery for delivery, state in self.states.items() if state in ALIVE}
        return len(waiting - self._deferred()) + self._count(State.CANCELLED)

    def problems(self) -> list[str]:
        """Why the drill has failed; empty if it was passed."""
        switch = self.switch_seconds
        found = [
            (bool(self.broken_off), self.broken_off),
            (self.lost > 0, f"lost: {self.lost}"),
            (self.duplicates > 0, f"sent twice: {self.duplicates}"),
            (switch is None and not self.broken_off, self._no_switch()),
            (
                self._ignored > 0,
                f"went out through {self.server} in spite of its death: {self._ignored}",
            ),
            (
                (switch or 0.0) > LONGEST_SWITCH_SECONDS,
                f"the switch took longer than {LONGEST_SWITCH_SECONDS:.0f} s",
            ),
            (
                self.return_seconds is None and not self.broken_off,
                f"no mail went out through {self.server} again after its return",
            ),
        ]
        return [text for is_so, text in found if is_so]

    def _no_switch(self) -> str:
        text = f"no mail went out through another server while {self.server} counted as dead"
        replies = [one.reply for one in self.attempts if one.outcome != State.SENT and one.reply]
        return f"{text} (the last reply was: {replies[-1]})" if replies else text

    @property
    def _ignored(self) -> int:
        """Mails that a worker sent through the dead server: it cannot have heard of the drill."""
        own = [one for one in self._accepted_meanwhile() if one.server == self.server]
        return sum(1 for one in own if one.finished_at < self.until)

    def _successes(self) -> list[str]:
        accepted = Counter(one.server for one in self._accepted_meanwhile())
        return [f"{server} took {n} of {accepted.total()}" for server, n in sorted(accepted.items())]

    def _accepted_meanwhile(self) -> list[DrillAttempt]:
        return [
            one
            for one in self.attempts
            if one.outcome == State.SENT and one.delivery_id not in self.returning
        ]

    def _deferred(self) -> set[int]:
        return {one.delivery_id for one in self.attempts if one.outcome == "deferred"}

    def _count(self, state: State) -> int:
        return sum(1 for one in self.states.values() if one is state)
