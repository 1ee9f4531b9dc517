"""Random histories of workers, servers, clock and operator, on the real ledger: the promise holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from campaigns.ledger import Ledger
from tests.stateful.clock import HandClock, clocked_database
from tests.stateful.defects import BREAK_A_RULE, BREAK_THE_PROMISE
from tests.stateful.machine import LedgerMachine

EXAMPLES = int(os.environ.get("CAMPAIGNS_TEST_EXAMPLES", "40"))
STEPS = 40
BUDGET = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink),
    print_blob=True,
)


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
def defective(sqlite_url: str, tmp_path: Path) -> Iterator[tuple[type[LedgerMachine], pytest.MonkeyPatch]]:
    with clocked_database(sqlite_url) as (database, clock), pytest.MonkeyPatch.context() as patch:
        yield bound(Ledger(database, shard=0), clock, tmp_path / "journal"), patch


SEARCH = settings(
    BUDGET, max_examples=300, phases=(Phase.generate,), derandomize=True, database=None, print_blob=False
)


@pytest.mark.parametrize("plant", BREAK_THE_PROMISE, ids=lambda plant: plant.__name__)
def test_the_promise_alone_finds(
    defective: tuple[type[LedgerMachine], pytest.MonkeyPatch], plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    machine, patch = defective
    machine.is_trusting = True
    plant(patch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=SEARCH)


@pytest.mark.parametrize("plant", BREAK_A_RULE, ids=lambda plant: plant.__name__)
def test_the_reference_finds(
    defective: tuple[type[LedgerMachine], pytest.MonkeyPatch], plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    machine, patch = defective
    plant(patch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=SEARCH)
