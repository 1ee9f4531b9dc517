"""Random histories of workers, servers, clock and operator, on the real ledger: the promise holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from campaigns.ledger import Ledger
from tests.stateful import defects
from tests.stateful.clock import HandClock, clocked_database
from tests.stateful.machine import LedgerMachine

Plant = Callable[[pytest.MonkeyPatch], None]
Defective = tuple[type[LedgerMachine], pytest.MonkeyPatch]

LONGER = os.environ.get("CAMPAIGNS_TEST_EXAMPLES")
"""How many histories to try of each kind; left out: few, and a choice of the planted defects."""

BUDGET = settings(
    max_examples=int(LONGER or 15),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink),
    print_blob=True,
)
SEARCH = settings(
    BUDGET, max_examples=1000, phases=(Phase.generate,), derandomize=True, database=None, print_blob=False
)
"""For what must be found: always the same histories, and no more of them than are needed."""


@pytest.fixture
def machine(database_url: str, tmp_path: Path) -> Iterator[type[LedgerMachine]]:
    with clocked_database(database_url) as (database, clock):
        yield bound(Ledger(database, shard=0), clock, tmp_path / "journal")


def bound(ledger: Ledger, clock: HandClock, directory: Path) -> type[LedgerMachine]:
    """The machine on this database."""
    values = {"ledger": ledger, "clock": clock, "directory": directory}
    return type("LedgerMachine", (LedgerMachine,), values)


@pytest.mark.timeout(0)
def test_the_promise_holds_whatever_happens(machine: type[LedgerMachine]) -> None:
    run_state_machine_as_test(machine, settings=BUDGET)


@pytest.fixture
def defective(sqlite_url: str, tmp_path: Path) -> Iterator[Defective]:
    with clocked_database(sqlite_url) as (database, clock), pytest.MonkeyPatch.context() as patch:
        yield bound(Ledger(database, shard=0), clock, tmp_path / "journal"), patch


def some(defects: tuple[Plant, ...], *chosen: Plant) -> pytest.MarkDecorator:
    """All of them in a longer run."""
    return pytest.mark.parametrize(
        "plant", defects if LONGER else chosen, ids=lambda plant: str(plant.__name__)
    )


@pytest.mark.timeout(0)
@some(
    defects.BREAK_THE_PROMISE,
    defects.the_commit_point_ignores_the_fence,
    defects.a_retry_keeps_the_fence,
    defects.the_sweep_sends_what_is_committing_again,
)
def test_the_promise_alone_finds(defective: Defective, plant: Plant) -> None:
    machine, patch = defective
    machine.is_trusting = True
    plant(patch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=SEARCH)


@pytest.mark.timeout(0)
@some(defects.BREAK_A_RULE, defects.a_late_250_is_dropped)
def test_the_reference_finds(defective: Defective, plant: Plant) -> None:
    machine, patch = defective
    plant(patch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=SEARCH)
