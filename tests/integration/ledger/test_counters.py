"""Whatever is done in whatever order: the kept counts are what a scan would find."""

from __future__ import annotations

import contextlib
import random

import pytest
from sqlalchemy import text

from campaigns.errors import TransitionRefused
from campaigns.ledger import Claim, Claimed, CommitPoint, Ledger, Operation, Renew
from campaigns.states import State
from tests.crowd import Crowd, new_recipients, report

SERVERS = ["primary", "secondary"]


class Walk:
    """Random but repeatable steps through everything that the ledger offers."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.random = random.Random(seed)
        self.ledger = ledger
        self.crowd = Crowd(ledger, 25)
        self.claims: list[Claimed] = []

    def step(self) -> None:
        self.random.choice(
            [
                self.produce,
                self.produce,
                self.work,
                self.work,
                self.work,
                self.reroute,
                self.sweep,
                self.operate,
            ]
        )()

    def produce(self) -> None:
        due = self.ledger.due(self.random.randint(1, 20))
        self.ledger.enqueue([(one.delivery_id, self.random.choice(SERVERS)) for one in due])

    def work(self) -> None:
        ids = self.random.sample(self.crowd.ids, 10)
        operations: list[Operation] = [
            Claim(delivery_id=one, server=self.random.choice(SERVERS), owner="w", lease_seconds=60)
            for one in ids
        ]
        known = self.random.sample(self.claims, min(8, len(self.claims)))
        operations += [self._about(claim) for claim in known]
        self.random.shuffle(operations)
        results = self.ledger.apply(operations)
        assert not [result for result in results if isinstance(result, Exception)]
        self.claims += [result for result in results if isinstance(result, Claimed)]

    def _about(self, claim: Claimed) -> Operation:
        if self.random.random() < 0.4:
            return CommitPoint(delivery_id=claim.delivery_id, fence=claim.fence)
        if self.random.random() < 0.2:
            return Renew(delivery_id=claim.delivery_id, fence=claim.fence, lease_seconds=60)
        to = self.random.choice([State.SENT, State.FAILED, State.PENDING, State.QUEUED, State.UNCERTAIN])
        return report(
            claim,
            to,
            server=self.random.choice(SERVERS),
            to_server=self.random.choice(SERVERS),
            from_committing=self.random.random() < 0.7,
            deferral=self.random.random() < 0.3,
        )

    def reroute(self) -> None:
        away, there = self.random.sample(SERVERS, 2)
        self.ledger.reroute_queued(away, {there: 1})

    def sweep(self) -> None:
        self._expire()
        self.ledger.sweep_leases(max_crashes=3)
        self.ledger.finish_idle()

    def _expire(self) -> None:
        with self.ledger.database.write() as connection:
            sql = "UPDATE delivery SET lease_until = 1 WHERE lease_until IS NOT NULL AND id < :id"
            connection.execute(text(sql), {"id": self.random.choice(self.crowd.ids)})

    def operate(self) -> None:
        name = self.crowd.name
        steps = [
            lambda: self.ledger.pause(name),
            lambda: self.ledger.resume(name),
            lambda: self.ledger.resume(name),
            lambda: self.ledger.retry(name),
            lambda: self.ledger.retry(name, State.UNCERTAIN),
            lambda: self.ledger.add_recipients(self.crowd.campaign_id, new_recipients(30)),
            lambda: self.ledger.suppress([("person3@example.com", "person3@example.com", None)]),
        ]
        with contextlib.suppress(TransitionRefused):
            self.random.choice(steps)()


@pytest.mark.parametrize("seed", range(6))
def test_the_counters_are_what_a_scan_finds(ledger: Ledger, seed: int) -> None:
    walk = Walk(ledger, seed)
    fences: dict[int, int] = {}
    for _ in range(60):
        walk.step()
        walk.crowd.counts()
        for delivery in ledger.deliveries(walk.crowd.name):
            assert delivery.fence >= fences.get(delivery.id, 0)
            fences[delivery.id] = delivery.fence
    ledger.cancel(walk.crowd.name)
    walk._expire()
    ledger.sweep_leases()
    walk.crowd.counts()
