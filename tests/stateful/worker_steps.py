"""What workers do: messages, claims, commit points, dots, reports, renewals; and how they come to grief."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Claimed, Move, Record
from campaigns.states import State
from tests.stateful import stock
from tests.stateful.attempts import LEASE_SECONDS, SERVERS, Attempt, Stage, claim_of, other
from tests.stateful.reference import Seen
from tests.stateful.setting import Ask, Setting, drawn
from tests.stateful.step import step

WAITS = st.sampled_from([0.0, 30.0, 300.0])
SERVER = st.sampled_from(SERVERS)
SELDOM = st.integers(0, 3).map(lambda number: number == 3)
MOST_AT_ONCE = 4


class WorkerSteps(Setting):
    """`is_lost`: the database took it, and its answer never came."""

    @step(3, when=lambda self: self.in_state(State.PENDING, State.QUEUED), server=SERVER, is_lost=SELDOM)
    def take(self, data: st.DataObject, server: str, is_lost: bool) -> None:
        """A message comes to the right server; the producer made it a moment before, if need be."""
        self._take(data, server, is_lost)

    def _take(self, data: st.DataObject, server: str, is_lost: bool = False) -> None:
        self.take_up(drawn(data, self.in_state(State.PENDING, State.QUEUED), "delivery"), server, is_lost)

    def take_up(self, row: Seen, server: str, is_lost: bool = False) -> None:
        if row.state is State.PENDING:
            self.enqueue({row.id: server})
        self.submit([self._claim(row.id, self.rows[row.id].server or server, is_lost)])

    @step(
        5,
        when=lambda self: self.in_state(State.PENDING, State.QUEUED),
        server=SERVER,
        is_accepted=st.booleans(),
        is_heard=st.booleans(),
    )
    def come_as_far_as_the_dot(
        self, data: st.DataObject, server: str, is_accepted: bool, is_heard: bool
    ) -> None:
        """The whole way without a disturbance: what follows is of interest."""
        known = len(self.attempts)
        self._take(data, server)
        for attempt in self.attempts[known:]:
            self.submit([self._commit(attempt)])
            if attempt in self._may_write_dot():
                self._write_dot(attempt, is_accepted, is_heard)

    def ask_or_report(self, data: st.DataObject, attempt: Attempt) -> None:
        """What an attempt does next that concerns the ledger."""
        if attempt.stage is Stage.CLAIMED and data.draw(st.booleans(), label="asks for the dot"):
            self.submit([self._commit(attempt)])
        elif attempt in self.unreported():
            self.submit([self._report(data, attempt, 0.0)])

    @step(server=SERVER)
    def get_stray_message(self, data: st.DataObject, server: str) -> None:
        """A duplicate, or one that came too late."""
        self.submit([self._claim(drawn(data, sorted(self.rows), "delivery"), server)])

    @step(3, when=lambda self: self.of_stage(Stage.CLAIMED), is_lost=SELDOM)
    def ask_for_the_dot(self, data: st.DataObject, is_lost: bool) -> None:
        self.submit([self._commit(drawn(data, self.of_stage(Stage.CLAIMED), "attempt"), is_lost)])

    @step(4, when=lambda self: self._may_write_dot(), is_accepted=st.booleans(), is_heard=st.booleans())
    def write_the_dot(self, data: st.DataObject, is_accepted: bool, is_heard: bool) -> None:
        """Allowed, and the lease holds by the worker's own clock."""
        self._write_dot(drawn(data, self._may_write_dot(), "attempt"), is_accepted, is_heard)

    def _write_dot(self, attempt: Attempt, is_accepted: bool, is_heard: bool) -> None:
        dot = attempt.hand_over_dot(is_accepted=is_accepted, is_heard=is_heard)
        row = stock.rows(self.ledger.database)[attempt.delivery_id]
        self.promise.hand_over(dot, row, clock_is_right=attempt.clock_is_right)

    @step(5, when=lambda self: self.unreported(), wait_seconds=WAITS, is_lost=SELDOM)
    def report(self, data: st.DataObject, wait_seconds: float, is_lost: bool) -> None:
        """A report whose answer was lost goes to the journal, and comes again."""
        self.submit([self._report(data, drawn(data, self.unreported(), "attempt"), wait_seconds, is_lost)])

    @step(2, when=lambda self: self.unreported(), wait_seconds=WAITS)
    def report_to_the_journal(self, data: st.DataObject, wait_seconds: float) -> None:
        """The database is away."""
        record = self._end(data, drawn(data, self.unreported(), "attempt"), wait_seconds)
        self.journal.append(record)

    @step(2, when=lambda self: any(self.directory.glob("*.journal")), is_lost=SELDOM)
    def replay_the_journal(self, is_lost: bool) -> None:
        """An answer that was lost leaves the file there: it is replayed once more."""
        if not is_lost:
            self.replay()
            assert not list(self.directory.glob("*"))
            return
        try:
            self.journal.replay(self._take_and_lose_the_answer)
        except DatabaseUnavailable:
            assert list(self.directory.glob("*.journal"))

    def _take_and_lose_the_answer(self, records: list[Record]) -> bool:
        self._take_from_journal(records)
        raise DatabaseUnavailable("the connection went before the answer came")

    @step(2, when=lambda self: self.reports)
    def repeat_a_report(self, data: st.DataObject) -> None:
        """However late."""
        self.submit([Ask(operation=drawn(data, self.reports, "report"))])

    @step(when=lambda self: self.unreported())
    def vanish(self, data: st.DataObject) -> None:
        """A worker is killed, at whatever step."""
        drawn(data, self.unreported(), "attempt").stage = Stage.OVER

    @step(2, when=lambda self: self.unreported(), is_lost=SELDOM)
    def renew(self, data: st.DataObject, is_lost: bool) -> None:
        """Of those that are there; others were suspended, or lost their database."""
        held = st.lists(st.sampled_from(self.unreported()), min_size=1, unique_by=id)
        self.submit([self._renewal(attempt, is_lost) for attempt in data.draw(held, label="attempts")])

    @step(server=SERVER, wait_seconds=WAITS, waits=st.booleans())
    def step_aside(self, data: st.DataObject, server: str, wait_seconds: float, waits: bool) -> None:
        delivery_id = drawn(data, sorted(self.rows), "delivery")
        to = None if waits else other(server)
        self.submit([Ask(operation=_move(delivery_id, server, to, wait_seconds))])

    @step(3, size=st.integers(2, MOST_AT_ONCE))
    def ask_for_several_things_at_once(self, data: st.DataObject, size: int) -> None:
        """Of one delivery too, in any order; nobody asks for the same twice."""
        asks = [self._something(data) for _ in range(size)]
        self.submit([ask for ask in asks if ask is not None])

    def _something(self, data: st.DataObject) -> Ask | None:
        choices: dict[str, Callable[[], Ask | None]] = {
            "claim": lambda: self._claim(drawn(data, sorted(self.rows), "delivery"), data.draw(SERVER)),
            "move": lambda: Ask(
                operation=_move(drawn(data, sorted(self.rows), "delivery"), data.draw(SERVER))
            ),
        }
        if claimed := self.of_stage(Stage.CLAIMED):
            choices["commit"] = lambda: self._commit(drawn(data, claimed, "attempt"))
        if unreported := self.unreported():
            choices["renew"] = lambda: self._renewal(drawn(data, unreported, "attempt"))
            choices["report"] = lambda: self._report(data, drawn(data, unreported, "attempt"), 0.0)
        if self.reports:
            choices["repeat"] = lambda: Ask(operation=drawn(data, self.reports, "report"))
        return choices[drawn(data, sorted(choices), "what")]()

    # who asks, and what comes of it

    def unreported(self) -> list[Attempt]:
        return self.of_stage(Stage.CLAIMED, Stage.ALLOWED, Stage.STOPPED, Stage.ANSWERED)

    def _may_write_dot(self) -> list[Attempt]:
        allowed = self.of_stage(Stage.ALLOWED)
        return [attempt for attempt in allowed if self.clock.monotonic < attempt.valid_until]

    def _claim(self, delivery_id: int, server: str, is_lost: bool = False) -> Ask:
        asked_at = self.clock.monotonic

        def told(claimed: object) -> None:
            if isinstance(claimed, Claimed) and not is_lost:
                token = self.tokens[claimed.campaign_id]
                self.attempts.append(Attempt.of(claimed, server, token, asked_at))

        return Ask(operation=claim_of(delivery_id, server), told=told)

    def _commit(self, attempt: Attempt, is_lost: bool = False) -> Ask:
        attempt.stage = Stage.STOPPED

        def told(is_allowed: object) -> None:
            if is_allowed:
                self.promise.committed.add((attempt.delivery_id, attempt.fence))
            if is_allowed and not is_lost and attempt.stage is Stage.STOPPED:
                attempt.stage = Stage.ALLOWED

        return Ask(operation=attempt.commit_point, told=told)

    def _renewal(self, attempt: Attempt, is_lost: bool = False) -> Ask:
        asked_at = self.clock.monotonic

        def told(is_renewed: object) -> None:
            if is_renewed and not is_lost:
                attempt.valid_until = asked_at + LEASE_SECONDS

        return Ask(operation=attempt.renewal, told=told)

    def _report(
        self, data: st.DataObject, attempt: Attempt, wait_seconds: float, is_lost: bool = False
    ) -> Ask:
        record = self._end(data, attempt, wait_seconds)
        return Ask(operation=record, told=lambda _: self.journal.append(record) if is_lost else None)

    def _end(self, data: st.DataObject, attempt: Attempt, wait_seconds: float) -> Record:
        record = attempt.report(drawn(data, attempt.ends, "end"), wait_seconds)
        attempt.stage = Stage.OVER
        self.reports.append(record)
        return record


def _move(delivery_id: int, server: str, to: str | None = None, wait_seconds: float = 0.0) -> Move:
    return Move(delivery_id=delivery_id, from_server=server, to_server=to, wait_seconds=wait_seconds)
