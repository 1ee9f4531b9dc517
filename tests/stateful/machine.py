"""The machine: workers, producer, sweep, clock and operator, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import rule

from campaigns.states import State, Status
from tests.stateful import stock
from tests.stateful.attempts import LEASE_SECONDS, other
from tests.stateful.reference import WAITING
from tests.stateful.setting import drawn
from tests.stateful.step import step, steps_of
from tests.stateful.worker_steps import SELDOM, SERVER, WAITS, WorkerSteps

DOT_SECONDS = 600.0
MOST_CRASHES = 3
PEOPLE = st.sets(st.integers(0, 3), min_size=1, max_size=2)
CAMPAIGN = st.sampled_from(["spring", "receipts", "late"])
STREAM = st.sampled_from([None, "promotional", "transactional"])


class SweepSteps(WorkerSteps):
    """Producer and sweep, and the time that passes for them."""

    def enqueue(self, assignments: dict[int, str]) -> None:
        self.reference.now = self.clock.now
        expected = self.reference.enqueue(assignments)
        queued = self.ledger.enqueue(list(assignments.items()))
        self.agree([one.delivery_id for one in queued], expected)

    @step()
    def give_servers(self, data: st.DataObject) -> None:
        """To anybody, as by a producer that looked long ago."""
        servers = st.dictionaries(st.sampled_from(sorted(self.rows)), SERVER, min_size=1)
        self.enqueue(data.draw(servers, label="servers"))

    @step(2, server=SERVER)
    def produce(self, server: str) -> None:
        self.reference.now = self.clock.now
        due = {one.delivery_id for one in self.ledger.due(100)}
        self.agree(due, self.reference.due())
        self.enqueue(dict.fromkeys(sorted(due), server))

    @step(seconds=st.sampled_from([20.0, 60.0, 61.0, 300.0, 660.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @step(3, seconds=st.sampled_from([61.0, 660.0]))
    def let_leases_run_out(self, seconds: float) -> None:
        """And whoever holds one is judged."""
        self.clock.advance(seconds)
        self.sweep()

    @step(seconds=st.sampled_from([-3600.0, -20.0, 20.0, 61.0]), is_meant=SELDOM)
    def set_the_databases_clock(self, seconds: float, is_meant: bool) -> None:
        """Ahead, and the workers' leases end sooner than they think."""
        if not is_meant:
            return
        self.clock.jump(seconds)
        for attempt in self.attempts:
            attempt.clock_is_right &= seconds < 0

    @step(2)
    def sweep(self) -> None:
        self.reference.now = self.clock.now
        self.reference.sweep(MOST_CRASHES, LEASE_SECONDS)
        self.ledger.sweep_leases(max_crashes=MOST_CRASHES, lease_seconds=LEASE_SECONDS)

    @step(2, server=SERVER, what=st.sampled_from(["reroute", "withdraw", "publish again", "postpone"]))
    def tend_the_queues(self, data: st.DataObject, server: str, what: str) -> None:
        """What the producer and the sweep do about a server that is too slow, too full or dead."""
        if what == "reroute":
            self._reroute(server, data.draw(STREAM), data.draw(st.sampled_from([1, 500]), label="limit"))
        elif what == "withdraw":
            self._withdraw(server, data.draw(STREAM))
        elif what == "publish again":
            self._publish_again(server, data.draw(st.sampled_from([0.0, 60.0]), label="seconds"))
        else:
            self._postpone(data, data.draw(st.booleans(), label="each"))

    def _reroute(self, server: str, stream: str | None, limit: int) -> None:
        self.reference.now = self.clock.now
        expected = self.reference.change(
            self.reference.queued_for(server, stream, limit),
            lambda row, _: self.reference.back(row, other(server)),
        )
        moved = self.ledger.reroute_queued(server, {other(server): 1.0}, limit, stream=stream)
        self.agree({one.delivery_id for one in moved}, set(expected))

    def _withdraw(self, server: str, stream: str | None) -> None:
        self.reference.now = self.clock.now
        waiting = self.reference.queued_for(server, stream)
        expected = self.reference.change(waiting, lambda row, _: self.reference.back(row, None))
        self.agree(self.ledger.withdraw_queued(server, stream=stream), len(expected))

    def _publish_again(self, server: str, seconds: float) -> None:
        """What has been queued for longer is found, whatever became of its message; its wait begins anew."""
        self.reference.now = now = self.clock.now
        found = [one.delivery_id for one in self.ledger.stale_queued(server, seconds)]
        waiting = [self.rows[one] for one in self.reference.queued_for(server)]
        self.agree(
            found, [row.id for row in waiting if row.wakes_at is not None and row.wakes_at < now - seconds]
        )
        self.agree(self.ledger.touch_queued(found), len(found))
        self.reference.change(found, lambda row, _: row._replace(wakes_at=now))

    def _postpone(self, data: st.DataObject, each: bool) -> None:
        self.reference.now = self.clock.now
        waits = st.dictionaries(st.sampled_from(sorted(self.rows)), WAITS, min_size=1)
        seconds = data.draw(waits, label="seconds")
        if each:
            self.agree(self.ledger.postpone_each(seconds), self.reference.postpone(seconds))
        else:
            expected = self.reference.postpone(dict.fromkeys(seconds, 30.0))
            self.agree(self.ledger.postpone(list(seconds), 30.0), expected)

    @step(2)
    def start_and_finish(self) -> None:
        self._start_what_is_scheduled()
        self._finish()

    def _start_what_is_scheduled(self) -> None:
        started = []
        for one, campaign in self.reference.campaigns.items():
            if campaign.status is Status.SCHEDULED and (campaign.scheduled_at or 0) <= self.clock.now:
                self.set_status(one, Status.RUNNING)
                started.append(self.names[one])
        self.agree(sorted(self.ledger.start_scheduled()), sorted(started))

    def _finish(self) -> None:
        expected = {self.names[one] for one in self.reference.finish()}
        self.agree(set(self.ledger.finish_idle()), expected)


class OperatorSteps(SweepSteps):
    """Whatever may be asked for, also when it is refused."""

    def _id(self, name: str) -> int:
        return next(one for one, known in self.names.items() if known == name)

    def _status(self, name: str) -> Status:
        return self.reference.campaigns[self._id(name)].status

    @step(2, name=CAMPAIGN)
    def wish_for_something(self, data: st.DataObject, name: str) -> None:
        """One rule for all that ends or holds up a campaign, so that most histories are about sending."""
        wishes: dict[str, Callable[[], None]] = {
            "pause": lambda: self._pause(name, data.draw(st.booleans(), label="by itself")),
            "resume": lambda: self._resume(name),
            "send": lambda: self._send_at(name, data.draw(st.sampled_from([None, -20.0, 300.0]))),
            "cancel": lambda: self._cancel(name),
            "cancel, and die": lambda: self._die_while_cancelling(name),
            "add people": lambda: self.add(self._id(name), data.draw(PEOPLE, label="people")),
            "suppress": lambda: self._suppress(data.draw(st.integers(0, 3), label="number")),
            "retry": lambda: self._retry_the_failed(name),
        }
        wishes[drawn(data, sorted(wishes), "wish")]()

    @step(3, when=lambda self: self._campaigns_in(Status.PAUSED))
    def resume(self, data: st.DataObject) -> None:
        self._resume(drawn(data, self._campaigns_in(Status.PAUSED), "name"))

    @step(2, when=lambda self: self.in_state(State.FAILED), name=CAMPAIGN)
    def retry_the_failed(self, name: str) -> None:
        self._retry_the_failed(name)

    @step(
        2,
        when=lambda self: self.in_state(State.UNCERTAIN),
        name=CAMPAIGN,
        not_before_seconds=st.sampled_from([0.0, 0.0, DOT_SECONDS + LEASE_SECONDS]),
    )
    def retry_the_uncertain(self, name: str, not_before_seconds: float) -> None:
        self._retry_the_uncertain(name, not_before_seconds)

    def _campaigns_in(self, status: Status) -> list[str]:
        return [self.names[one] for one, each in self.reference.campaigns.items() if each.status is status]

    def _pause(self, name: str, by_itself: bool) -> None:
        status, one = self._status(name), self._id(name)
        if by_itself:
            self.agree(self.ledger.pause_by_policy(one, "SPF fails"), status is Status.RUNNING)
            is_paused = status is Status.RUNNING
        else:
            can = status in {Status.SCHEDULED, Status.RUNNING, Status.PAUSED}
            is_paused = self.allowed(can, lambda: self.ledger.pause(name)) is not None
        if is_paused:
            self.set_status(one, Status.PAUSED)

    def _resume(self, name: str) -> None:
        campaign = self.reference.campaigns[self._id(name)]
        is_open = campaign.status in {Status.PAUSED, Status.RUNNING}
        if self.allowed(is_open, lambda: self.ledger.resume(name)) is None:
            return
        is_early = not campaign.has_started and (campaign.scheduled_at or 0) > self.clock.now
        back = Status.SCHEDULED if is_early and campaign.status is Status.PAUSED else Status.RUNNING
        self.set_status(self._id(name), back)

    def _send_at(self, name: str, in_seconds: float | None) -> None:
        at = None if in_seconds is None else self.clock.now + in_seconds
        campaign = self.reference.campaigns[self._id(name)]
        wanted = Status.RUNNING if at is None else Status.SCHEDULED
        can = campaign.status in {Status.DRAFT, Status.SCHEDULED, wanted}
        if self.allowed(can, lambda: self.ledger.send(name, at)) is not None:
            campaign.scheduled_at = at or campaign.scheduled_at
            self.set_status(self._id(name), wanted)

    def _cancel(self, name: str) -> None:
        if self.allowed(self._status(name) is not Status.FINISHED, lambda: self.ledger.cancel(name)) is None:
            return
        self.set_status(self._id(name), Status.CANCELLED)
        before_the_dot = frozenset({State.PENDING, State.QUEUED, State.CLAIMED})
        self.reference.now = self.clock.now
        self.reference.end(self.reference.of(self._id(name)), before_the_dot, State.CANCELLED)

    def _die_while_cancelling(self, name: str) -> None:
        """Killed between the status and the deliveries: the sweep has to end them."""
        if self._status(name) not in {Status.FINISHED, Status.CANCELLED}:
            with self.ledger.database.write() as connection:
                connection.exec_driver_sql(f"UPDATE campaign SET status = 'cancelled' WHERE name = '{name}'")
            self.set_status(self._id(name), Status.CANCELLED)

    def _retry_the_failed(self, name: str) -> None:
        self._retry(name, State.FAILED, 0.0)

    def _retry_the_uncertain(self, name: str, not_before_seconds: float) -> None:
        """The only way to a second mail."""
        doubtful = [row.id for row in self.in_state(State.UNCERTAIN)]
        self._retry(name, State.UNCERTAIN, not_before_seconds)
        rows = stock.rows(self.ledger.database)
        for one in doubtful:
            if rows[one].state is not State.UNCERTAIN:
                self.promise.resent(one, rows[one].fence)

    def _retry(self, name: str, state: State, not_before_seconds: float) -> None:
        can = self._status(name) in {Status.RUNNING, Status.PAUSED, Status.FINISHED}
        retried = self.allowed(can, lambda: self.ledger.retry(name, state, not_before_seconds))
        if retried is None:
            return
        self.reference.now = self.clock.now
        candidates = [one for one in self.reference.of(self._id(name)) if self.rows[one].state is state]
        moved = self.reference.retry(self._id(name), state, not_before_seconds)
        self.agree((retried.moved, retried.left), (len(moved), len(candidates) - len(moved)))

    def _suppress(self, number: int) -> None:
        key = f"person{number}@example.com"
        self.ledger.suppress([(key, key, None)])
        self.reference.suppressed.add(key)
        self.reference.now = self.clock.now
        concerned = [
            row.id for row in self.rows.values() if row.key == key and self._is_open(row.campaign_id)
        ]
        self.reference.end(concerned, frozenset({State.PENDING, State.QUEUED}), State.SUPPRESSED)

    def _is_open(self, campaign_id: int) -> bool:
        return not self.reference.campaigns[campaign_id].is_over


class ZombieSteps(OperatorSteps):
    """Whole stories that chance alone would tell too seldom."""

    @step(6, when=lambda self: self.unreported(), server=SERVER, wakes=st.booleans())
    def overtake(self, data: st.DataObject, server: str, wakes: bool) -> None:
        """A worker is suspended for longer than its lease, another takes the delivery, and the first wakes.

        What is uncertain by then is sent again by the operator.
        """
        zombie = drawn(data, self.unreported(), "zombie")
        self.clock.advance(LEASE_SECONDS)
        self.sweep()
        row = self.rows[zombie.delivery_id]
        if row.state is State.UNCERTAIN:
            self._retry_the_uncertain(self.names[row.campaign_id], 0.0)
        known = len(self.attempts)
        if self.rows[row.id].state in WAITING:
            self.take_up(self.rows[row.id], server)
        for other_attempt in self.attempts[known:]:
            if data.draw(st.booleans(), label="the other acts too"):
                self.ask_or_report(data, other_attempt)
        if wakes:
            self.holds()
            self.ask_or_report(data, zombie)

    @step(2, when=lambda self: self.in_state(State.COMMITTING), is_meant=SELDOM)
    def stop_at_the_dot(self, data: st.DataObject, is_meant: bool) -> None:
        """The operator stops a campaign, for good or not, while somebody waits for a reply."""
        row = drawn(data, self.in_state(State.COMMITTING), "delivery")
        name = self.names[row.campaign_id]
        self._cancel(name) if is_meant else self._pause(name, False)


class LedgerMachine(ZombieSteps):
    """All of it."""

    steps: ClassVar = steps_of(ZombieSteps)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        possible = [one for one in self.steps if one.when(self)]
        names = [one.name for one in possible for _ in range(one.weight)]
        chosen = drawn(data, names, "step")
        next(one for one in possible if one.name == chosen).run(self, data)
