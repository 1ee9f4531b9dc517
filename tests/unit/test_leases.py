"""Leases: this process's own opinion is never later than the database's."""

import asyncio
from collections.abc import Sequence

from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Renew
from workers.leases import LeaseKeeper


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    clock = _Clock()
    keeper = LeaseKeeper(_all_renewed, lease_seconds=20, monotonic=clock)
    asked_at = keeper.now()
    clock.now += 5
    lease = keeper.hold(1, 1, asked_at=asked_at)
    clock.now = 119.9
    assert lease.is_valid()
    clock.now = 120.0
    assert not lease.is_valid()


async def test_a_renewal_counts_from_before_it_was_asked_for() -> None:
    clock = _Clock()

    async def slow(operations: Sequence[Renew]) -> list[object]:
        clock.now += 3
        return [True] * len(operations)

    keeper = LeaseKeeper(slow, lease_seconds=20, monotonic=clock)
    lease = keeper.hold(1, 1, asked_at=clock.now)
    clock.now = 110.0
    await keeper.renew_all()
    assert lease.valid_until == 130.0


async def test_a_lease_that_the_ledger_does_not_renew_runs_out() -> None:
    clock = _Clock()

    async def refused(operations: Sequence[Renew]) -> list[object]:
        return [False] * len(operations)

    keeper = LeaseKeeper(refused, lease_seconds=20, monotonic=clock)
    lease = keeper.hold(1, 1, asked_at=clock.now)
    clock.now = 110.0
    await keeper.renew_all()
    clock.now = 120.0
    assert not lease.is_valid()


async def test_all_that_is_held_is_renewed_in_one_call() -> None:
    calls: list[int] = []

    async def renew(operations: Sequence[Renew]) -> list[object]:
        calls.append(len(operations))
        return [True] * len(operations)

    keeper = LeaseKeeper(renew, lease_seconds=20)
    leases = [keeper.hold(number, 1, asked_at=keeper.now()) for number in range(50)]
    await keeper.renew_all()
    keeper.let_go(leases[0])
    await keeper.renew_all()
    assert calls == [50, 49]


async def test_to_let_go_of_an_old_lease_leaves_the_newer_one_of_the_same_delivery() -> None:
    renewed: list[int] = []

    async def renew(operations: Sequence[Renew]) -> list[object]:
        renewed.extend(operation.fence for operation in operations)
        return [True] * len(operations)

    keeper = LeaseKeeper(renew, lease_seconds=20)
    old = keeper.hold(1, 1, asked_at=keeper.now())
    newer = keeper.hold(1, 2, asked_at=keeper.now())
    keeper.let_go(old)
    await keeper.renew_all()
    assert renewed == [2]
    keeper.let_go(newer)
    assert len(keeper) == 0


async def test_leases_are_renewed_every_third_of_their_length_whatever_happens() -> None:
    calls = 0

    async def renew(operations: Sequence[Renew]) -> list[object]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise DatabaseUnavailable("gone")
        if calls == 2:
            raise ValueError("a surprise")
        renewed.set()
        return [True] * len(operations)

    renewed = asyncio.Event()
    keeper = LeaseKeeper(renew, lease_seconds=0.3)
    lease = keeper.hold(1, 1, asked_at=keeper.now())
    before = lease.valid_until
    loop = asyncio.create_task(keeper.run())
    await asyncio.wait_for(renewed.wait(), 10)
    await asyncio.sleep(0)
    loop.cancel()
    assert lease.valid_until > before


async def _all_renewed(operations: Sequence[Renew]) -> list[object]:
    return [True] * len(operations)
