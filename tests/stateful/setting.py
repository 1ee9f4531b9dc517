"""Three campaigns, two servers, a clock and a journal; and the checks that follow every step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from campaigns.errors import TransitionRefused
from campaigns.ledger import Claim, Claimed, Ledger, NewRecipient, Operation, Record, Recorded
from campaigns.states import ALIVE, OPEN, State, Status
from tests.stateful import stock
from tests.stateful.attempts import SERVERS, Attempt, Stage, claim_of
from tests.stateful.clock import HandClock
from tests.stateful.promise import Promise
from tests.stateful.reference import Reference, Seen, Standing
from tests.stateful.stock import Stock
from workers.journal import Journal

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """An operation, and who is told its result."""

    operation: Operation
    told: Callable[[object], None] = lambda _: None


class Setting(RuleBasedStateMachine):
    """What all rules stand on. Every step ends in `holds`.

    `is_trusting`: believe the database what it did, and hold it against the promise alone.
    """

    ledger: ClassVar[Ledger]
    clock: ClassVar[HandClock]
    directory: ClassVar[Path]
    is_trusting = False

    def __init__(self) -> None:
        super().__init__()
        self.clock.reset()
        stock.empty(self.ledger.database)
        self.reference, self.promise = Reference(), Promise()
        self.attempts: list[Attempt] = []
        self.reports: list[Record] = []
        self.names: dict[int, str] = {}
        self.tokens: dict[int, str] = {}
        self.before: Stock | None = None
        self.asked: list[Operation] = []
        self.journal = Journal(self.directory, "worker", wall_clock=lambda: self.clock.now)
        for left in self.directory.glob("*"):
            left.unlink()
        self._begin("spring", "promotional", 2)
        self._begin("receipts", "transactional", 1)
        self._begin("late", "promotional", 1, is_sent=False)

    def _begin(self, name: str, stream: str, size: int, *, is_sent: bool = True) -> None:
        record = self.ledger.create_campaign(
            name, sender="a@example.org", subject="Hi", text="Hello", stream=stream
        )
        self.names[record.id], self.tokens[record.id] = name, record.token
        self.reference.campaigns[record.id] = Standing(status=Status.DRAFT, stream=stream)
        self.add(record.id, range(size))
        if is_sent:
            self.ledger.send(name)
            self.set_status(record.id, Status.RUNNING)

    def enqueue(self, assignments: dict[int, str]) -> None:
        raise NotImplementedError

    def sweep(self) -> None:
        raise NotImplementedError

    # what steps use

    @property
    def rows(self) -> dict[int, Seen]:
        return self.reference.rows

    def of_stage(self, *stages: Stage) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.stage in stages]

    def in_state(self, *states: State) -> list[Seen]:
        return [row for row in self.rows.values() if row.state in states]

    def agree(self, real: object, expected: object) -> None:
        """What the ledger answered is what the reference says."""
        self.reference.now = self.clock.now
        assert self.is_trusting or real == expected, f"answered {real}, expected {expected}"

    def allowed(self, is_allowed: bool, call: Callable[[], Value]) -> Value | None:
        """The operator's wish: granted, or refused, as it is to be."""
        try:
            result = call()
        except TransitionRefused:
            assert self.is_trusting or not is_allowed
            return None
        assert self.is_trusting or is_allowed
        return result

    def set_status(self, campaign_id: int, status: Status) -> None:
        campaign = self.reference.campaigns[campaign_id]
        campaign.status = status
        campaign.has_started |= status is Status.RUNNING

    def submit(self, asks: Sequence[Ask]) -> None:
        """One batch: the ledger's answers are the reference's, and whoever asked is told."""
        operations = [ask.operation for ask in asks]
        self.asked += operations
        self.reference.now = self.clock.now
        expected = self.reference.apply(operations)
        results = self.ledger.apply(operations)
        answers = [_answer(*pair) for pair in zip(operations, expected, strict=True)]
        self.agree([_brief(result) for result in results], answers)
        for ask, result in zip(asks, results, strict=True):
            assert not isinstance(result, Exception), result
            ask.told(result)

    def _asked_by_the_stale_alone(self) -> set[int]:
        """Deliveries of which only attempts of old fences asked something since `before`, and none a 250."""
        own = {operation.delivery_id for operation in self.asked if not self._is_stale(operation)}
        return {operation.delivery_id for operation in self.asked} - own

    def _is_stale(self, operation: Operation) -> bool:
        fence = getattr(operation, "fence", None)
        sent = isinstance(operation, Record) and operation.to is State.SENT
        row = self.before and self.before.rows.get(operation.delivery_id)
        return fence is not None and row is not None and row.fence > fence and not sent

    def add(self, campaign_id: int, numbers: Iterable[int]) -> None:
        keys = [f"person{number}@example.com" for number in numbers]
        people = [NewRecipient(email=key, dedupe_key=key, domain="example.com") for key in keys]
        is_open = self.reference.campaigns[campaign_id].status in OPEN
        added = self.allowed(is_open, lambda: self.ledger.add_recipients(campaign_id, people))
        if added is None:
            return
        known = {self.rows[one].key for one in self.reference.of(campaign_id)}
        new = set(keys) - known
        self.agree((added.added, added.duplicate), (len(new), len(keys) - len(new)))
        suppressed = {one.dedupe_key for one in self.ledger.suppressions()}
        for row in stock.rows(self.ledger.database).values():
            if row.id not in self.rows and row.campaign_id == campaign_id:
                self._expect_new(row, is_suppressed=row.key in suppressed)

    def _expect_new(self, row: Seen, *, is_suppressed: bool) -> None:
        state = State.SUPPRESSED if is_suppressed else State.PENDING
        now = self.clock.now
        fresh = row._replace(state=state, server=None, fence=0, crashes=0, wakes_at=None, since=now)
        self.rows[row.id] = fresh if is_suppressed else fresh._replace(wakes_at=now)

    def replay(self) -> None:
        """What the journal holds goes to the ledger; DatabaseUnavailable as it comes."""
        self.journal.replay(self._take_from_journal)

    def _take_from_journal(self, records: list[Record]) -> bool:
        tokens = self.ledger.campaign_tokens([record.delivery_id for record in records])
        assert all(tokens[record.delivery_id] == record.campaign_token for record in records)
        self.submit([Ask(operation=record) for record in records])
        return True

    # what holds

    @invariant()
    def holds(self) -> None:
        now = Stock.of(self.ledger.database)
        if self.is_trusting:
            self._believe(now)
        else:
            assert now.rows == self.rows
            assert now.statuses == {one: each.status for one, each in self.reference.campaigns.items()}
        for row in now.raw.values():
            stock.check_row(row)
        if self.before is not None:
            self._check_against(self.before, now)
        self.promise.check(self.rows)
        for one in now.concerned(self.before):
            states = [self.rows[row].state for row in self.reference.of(one)]
            stock.check_counts(self.ledger, self.names[one], states, now.statuses[one])
        self.before, self.asked = now, []

    def _believe(self, now: Stock) -> None:
        assert now.rows.keys() >= self.rows.keys(), "somebody is gone"
        self.reference.rows = dict(now.rows)
        for one, status in now.statuses.items():
            self.set_status(one, status)

    def _check_against(self, before: Stock, now: Stock) -> None:
        """What was not to change is as it was, column by column; what was tried is only ever added to."""
        untouched = self._asked_by_the_stale_alone()
        for one, row in before.rows.items():
            assert now.rows[one].fence >= row.fence, "a fence was lowered"
            if one in untouched or (not self.is_trusting and now.rows[one] == row):
                assert now.raw[one] == before.raw[one], "a stale attempt, or nobody, changed something"
        assert now.tries[: len(before.tries)] == before.tries
        assert len({one[:3] for one in now.tries}) == len(now.tries), "a report counts twice"

    # how it ends

    def teardown(self) -> None:
        """Once everything is well again, every run comes to its end; unless it has just failed."""
        try:
            if sys.exc_info()[0] is None:
                self.is_trusting = True
                self._heal()
        finally:
            self.journal.close()

    def _heal(self) -> None:
        self.attempts.clear()
        self.replay()
        self.holds()
        for one, name in self.names.items():
            {Status.PAUSED: self.ledger.resume, Status.DRAFT: self.ledger.send}.get(
                self.reference.campaigns[one].status, self.ledger.campaign
            )(name)
        for _ in range(2):
            self.clock.advance(86_400)
            self._work()
            self.holds()
        assert not self.in_state(*ALIVE), f"alive for ever: {self.in_state(*ALIVE)}"
        assert all(campaign.is_over for campaign in self.reference.campaigns.values())

    def _work(self) -> None:
        """What sweep, producer and one good worker do in one turn."""
        self.ledger.start_scheduled()
        self.ledger.sweep_leases()
        self.ledger.enqueue([(due.delivery_id, SERVERS[0]) for due in self.ledger.due(100)])
        self.holds()
        for server in SERVERS:
            for queued in self.ledger.stale_queued(server, -1):
                self._send(queued.delivery_id, server)
        self.ledger.finish_idle()

    def _send(self, delivery_id: int, server: str) -> None:
        (claimed,) = self.ledger.apply([claim_of(delivery_id, server)])
        if self.rows[delivery_id].key in self.reference.suppressed:
            assert claimed is None, "whoever is on the list is not to be had"
            return
        assert isinstance(claimed, Claimed), "what is queued is to be had"
        attempt = Attempt.of(claimed, server, self.tokens[claimed.campaign_id], self.clock.monotonic)
        assert self.ledger.apply([attempt.commit_point]) == [True]
        self.promise.committed.add((delivery_id, attempt.fence))
        self.holds()
        dot = attempt.hand_over_dot(is_accepted=True, is_heard=True)
        self.promise.hand_over(dot, self.rows[delivery_id], clock_is_right=True)
        assert self.ledger.apply([attempt.report(State.SENT)]) == [Recorded(state=State.SENT, server=server)]


def _brief(result: object) -> object:
    if isinstance(result, Claimed):
        return State.CLAIMED, result.fence
    return result.state if isinstance(result, Recorded) else result


def _answer(operation: Operation, row: Seen | None) -> object:
    if isinstance(operation, Claim):
        return (row.state, row.fence) if row and row.state is State.CLAIMED else None
    if isinstance(operation, Record):
        return row and row.state
    return row is not None


def drawn(data: st.DataObject, candidates: Sequence[Value], label: str) -> Value:
    return data.draw(st.sampled_from(candidates), label=label)
