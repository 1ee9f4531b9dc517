"""Who handed over a dot, what the servers made of it, and what that allows the ledger to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from campaigns.states import State
from tests.stateful.reference import Seen


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A final dot that reached a server. `is_heard`: its reply reached the attempt."""

    delivery_id: int
    fence: int
    server: str
    is_accepted: bool
    is_heard: bool

    @property
    def is_refused(self) -> bool:
        """Definitely: the attempt knows, and so may anybody."""
        return self.is_heard and not self.is_accepted


class Promise:
    """What happened outside of the database."""

    def __init__(self) -> None:
        self.dots: dict[int, list[Dot]] = defaultdict(list)
        self.resends: dict[int, list[int]] = defaultdict(list)
        """By delivery, the fences that the operator's retries of uncertain mail gave."""
        self.committed: set[tuple[int, int]] = set()
        """Deliveries and fences that passed their commit point."""

    def hand_over(self, dot: Dot, row: Seen, *, clock_is_right: bool) -> None:
        """Called in the instant of the dot, with the row as it stands.

        Where the attempt's own clock can be relied on, the row is still its own.
        """
        if clock_is_right:
            assert (row.state, row.fence) == (State.COMMITTING, dot.fence), f"a dot by a stale attempt: {dot}"
        self.dots[dot.delivery_id].append(dot)

    def resent(self, delivery_id: int, fence: int) -> None:
        self.resends[delivery_id].append(fence)

    def check(self, rows: Mapping[int, Seen]) -> None:
        for row in rows.values():
            dots = self.dots[row.id]
            self._check_no_second_mail(row, dots)
            self._check_what_was_accepted(row, dots)
            _check_what_is_sent(row, dots)
            if row.state is State.UNCERTAIN:
                assert (row.id, row.fence) in self.committed, f"uncertain, and no dot was allowed: {row}"

    def _check_no_second_mail(self, row: Seen, dots: Iterable[Dot]) -> None:
        """After a dot there is another only if that one was refused, or the operator said so in between."""
        ordered = sorted(dots, key=lambda dot: dot.fence)
        for index, early in enumerate(ordered):
            for late in ordered[index + 1 :]:
                allowed = early.is_refused or self._is_resent(row.id, early.fence, late.fence)
                assert allowed, f"a second mail that nobody asked for: {early}, {late}"

    def _is_resent(self, delivery_id: int, after: int, before: float) -> bool:
        return any(after < fence < before for fence in self.resends[delivery_id])

    def _check_what_was_accepted(self, row: Seen, dots: Iterable[Dot]) -> None:
        """It is sent, or stands there as possibly sent, unless the operator had it sent again."""
        for dot in dots:
            if not dot.is_accepted or self._is_resent(row.id, dot.fence, float("inf")):
                continue
            doubted = row.state in {State.COMMITTING, State.UNCERTAIN} and row.fence == dot.fence
            assert doubted or row.state is State.SENT, f"accepted, but {row.state} under {row.fence}: {dot}"


def _check_what_is_sent(row: Seen, dots: Iterable[Dot]) -> None:
    if row.state is State.SENT:
        told = [dot for dot in dots if dot.is_accepted and dot.is_heard and dot.server == row.server]
        assert told, f"sent, and no server said so: {row}"
