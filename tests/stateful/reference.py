"""What each operation shall do to a delivery, said again: after docs/state_machine.md, not after the code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from campaigns.ledger import Claim, CommitPoint, Move, Operation, Record, Renew
from campaigns.states import ALIVE, State, Status

HELD = frozenset({State.CLAIMED, State.COMMITTING})
WAITING = frozenset({State.PENDING, State.QUEUED})
LONGEST_LEASE_SECONDS = 3600


class Seen(NamedTuple):
    """What matters of a delivery. `wakes_at`: when it is due, was queued, or its lease ends."""

    id: int
    campaign_id: int
    key: str
    state: State
    server: str | None
    fence: int
    crashes: int
    wakes_at: float | None
    since: float

    def at(self, state: State, now: float, wakes_at: float | None, server: str | None = None) -> Seen:
        return self._replace(state=state, since=now, wakes_at=wakes_at, server=server or self.server)


@dataclass
class Standing:
    """A campaign, as far as it matters."""

    status: Status
    stream: str
    has_started: bool = False
    scheduled_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self.status in {Status.FINISHED, Status.CANCELLED}


Decide = Callable[[Seen, Status], Seen | None]


class Reference:
    """The rows and campaigns as they shall be; `now` is the database's time."""

    def __init__(self) -> None:
        self.rows: dict[int, Seen] = {}
        self.campaigns: dict[int, Standing] = {}
        self.suppressed: set[str] = set()
        self.now = 0.0

    def apply(self, operations: Iterable[Operation]) -> list[Seen | None]:
        """The row as each leaves it, or None where it changes nothing."""
        results = [self._apply(operation) for operation in operations]
        self._reopen()
        return results

    def change(self, ids: Iterable[int], decide: Decide) -> list[int]:
        """Those that change, in the given order."""
        changed = []
        for one in ids:
            after = decide(self.rows[one], self._status(self.rows[one]))
            if after is not None:
                self.rows[one] = after
                changed.append(one)
        self._reopen()
        return changed

    def _apply(self, operation: Operation) -> Seen | None:
        row = self.rows.get(operation.delivery_id)
        if row is None:
            return None
        after = _STEPS[type(operation)](self, row, operation)
        if after is not None:
            self.rows[row.id] = after
        return after

    def _status(self, row: Seen) -> Status:
        return self.campaigns[row.campaign_id].status

    def _reopen(self) -> None:
        """A finished campaign that has somebody alive again runs again."""
        alive = {row.campaign_id for row in self.rows.values() if row.state in ALIVE}
        for one in alive:
            if self.campaigns[one].status is Status.FINISHED:
                self.campaigns[one].status = Status.RUNNING

    # the five operations of the hot path

    def _claim(self, row: Seen, operation: Claim) -> Seen | None:
        if (row.state, row.server, self._status(row)) != (State.QUEUED, operation.server, Status.RUNNING):
            return None
        if row.key in self.suppressed:
            return row.at(State.SUPPRESSED, self.now, None)
        claimed = row.at(State.CLAIMED, self.now, self.now + operation.lease_seconds)
        return claimed._replace(fence=row.fence + 1)

    def _commit_point(self, row: Seen, operation: CommitPoint) -> Seen | None:
        mine = row.state is State.CLAIMED and row.fence == operation.fence
        holds = row.wakes_at is not None and row.wakes_at > self.now
        if mine and holds and self._status(row) is Status.RUNNING:
            return row.at(State.COMMITTING, self.now, row.wakes_at)
        return None

    def _renew(self, row: Seen, operation: Renew) -> Seen | None:
        if row.state in HELD and row.fence == operation.fence:
            return row._replace(wakes_at=self.now + operation.lease_seconds)
        return None

    def _move(self, row: Seen, operation: Move) -> Seen | None:
        if row.state is not State.QUEUED or row.server != operation.from_server:
            return None
        return self.back(row, operation.to_server, operation.wait_seconds)

    def _record(self, row: Seen, operation: Record) -> Seen | None:
        mine = row.fence == operation.fence
        if mine and row.state is operation.to and row.state not in ALIVE:
            return row
        if operation.to is State.SENT:
            newer = row.state is State.COMMITTING and not mine
            takes = (row.state in ALIVE and not newer) or (row.state is State.UNCERTAIN and mine)
        elif operation.to is State.UNCERTAIN:
            takes = mine and row.state is State.COMMITTING
        else:
            takes = mine and row.state in HELD | {State.UNCERTAIN}
        if not takes:
            return None
        if operation.to in {State.PENDING, State.QUEUED}:
            server = operation.to_server if operation.to is State.QUEUED else None
            return self.back(row, server, operation.wait_seconds)
        return row.at(operation.to, self.now, None, operation.server)

    def back(self, row: Seen, server: str | None, wait_seconds: float = 0.0) -> Seen:
        """To a queue while the campaign runs, else to wait; nowhere once it is cancelled."""
        if self._status(row) is Status.CANCELLED:
            return row.at(State.CANCELLED, self.now, None)
        if server is None or self._status(row) is not Status.RUNNING:
            return row.at(State.PENDING, self.now, self.now + wait_seconds)
        return row.at(State.QUEUED, self.now, self.now, server)

    # the producer, the sweep and the operator

    def is_due(self, row: Seen) -> bool:
        if row.state is not State.PENDING or self._status(row) is not Status.RUNNING:
            return False
        return row.wakes_at is not None and row.wakes_at <= self.now

    def due(self) -> set[int]:
        return {row.id for row in self.rows.values() if self.is_due(row)}

    def enqueue(self, assignments: Mapping[int, str]) -> list[int]:
        return self.change(
            sorted(assignments),
            lambda row, _: self.back(row, assignments[row.id]) if self.is_due(row) else None,
        )

    def postpone(self, seconds: Mapping[int, float]) -> int:
        def wait(row: Seen, _: Status) -> Seen | None:
            is_due = row.state is State.PENDING and row.wakes_at is not None and row.wakes_at <= self.now
            return row._replace(wakes_at=self.now + seconds[row.id]) if is_due else None

        return len(self.change(seconds, wait))

    def queued_for(self, server: str, stream: str | None = None, limit: int = 500) -> list[int]:
        """What waits for the server in running campaigns, the oldest first."""
        found = [
            (row.wakes_at, row.id)
            for row in self.rows.values()
            if row.state is State.QUEUED and row.server == server and self._status(row) is Status.RUNNING
            if stream in {None, self.campaigns[row.campaign_id].stream}
        ]
        return [one for _, one in sorted(found)][:limit]

    def sweep(self, max_crashes: int, lease_seconds: float) -> None:
        def judge(row: Seen, status: Status) -> Seen | None:
            if row.state in WAITING and status is Status.CANCELLED:
                return row.at(State.CANCELLED, self.now, None)
            if row.state not in HELD or row.wakes_at is None:
                return None
            if row.wakes_at > self.now:
                latest = self.now + lease_seconds
                is_of_before = row.since > self.now or row.wakes_at > self.now + LONGEST_LEASE_SECONDS
                return row._replace(wakes_at=latest) if row.wakes_at > latest and is_of_before else None
            if row.state is State.COMMITTING:
                return row.at(State.UNCERTAIN, self.now, None)
            row = row._replace(crashes=row.crashes + 1)
            if row.crashes >= max_crashes and status is not Status.CANCELLED:
                return row.at(State.FAILED, self.now, None)
            return self.back(row, None)

        self.change(list(self.rows), judge)

    def end(self, ids: Iterable[int], states: frozenset[State], to: State) -> list[int]:
        """Cancel, or suppress, those in these states."""
        return self.change(ids, lambda row, _: row.at(to, self.now, None) if row.state in states else None)

    def retry(self, campaign_id: int, state: State, not_before_seconds: float) -> list[int]:
        def again(row: Seen, _: Status) -> Seen | None:
            if row.state is not state:
                return None
            if state is State.UNCERTAIN and row.since > self.now - not_before_seconds:
                return None
            return self.back(row._replace(fence=row.fence + 1, crashes=0), None)

        return self.change(self.of(campaign_id), again)

    def finish(self) -> list[int]:
        idle = [
            one
            for one, campaign in self.campaigns.items()
            if campaign.status is Status.RUNNING
            and not any(self.rows[id].state in ALIVE for id in self.of(one))
        ]
        for one in idle:
            self.campaigns[one].status = Status.FINISHED
        return idle

    def of(self, campaign_id: int) -> Sequence[int]:
        return [row.id for row in self.rows.values() if row.campaign_id == campaign_id]


_STEPS: Mapping[type, Callable[[Reference, Seen, Operation], Seen | None]] = {
    Claim: Reference._claim,
    CommitPoint: Reference._commit_point,
    Renew: Reference._renew,
    Move: Reference._move,
    Record: Reference._record,
}  # type: ignore[dict-item]
