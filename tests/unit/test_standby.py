"""When a standby is started and stopped, as a rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.ledger import StandbyRecord, StandbyState
from campaigns.standby import Need, StandbyTiming, next_turn

NOW = 1_800_000_000.0
TIMING = StandbyTiming()
WANTED = Need(is_wanted=True, is_kept=True, wanted_seconds=3.0)
KEPT = Need(is_wanted=False, is_kept=True)
IDLE = Need(is_wanted=False, is_kept=False, idle_seconds=60.0)


def standby(state: StandbyState, until: float | None = None) -> StandbyRecord:
    return StandbyRecord(
        server="reserve", state=state, owner=None, until=until, failures=0, reason=None, changed_at=NOW
    )


@pytest.mark.parametrize(
    ("state", "need", "turn"),
    [
        ("resting", WANTED, "start"),
        ("resting", KEPT, None),
        ("resting", IDLE, None),
        ("resting", Need(is_wanted=True, is_kept=True, wanted_seconds=2.9), None),
        ("active", WANTED, None),
        ("active", KEPT, None),
        ("active", replace(WANTED, down_seconds=30.0), "start"),
        ("active", replace(WANTED, down_seconds=29.9), None),
        ("active", replace(KEPT, down_seconds=30.0), None),
        ("active", IDLE, "stop"),
        ("active", Need(is_wanted=False, is_kept=False, idle_seconds=59.9), None),
        ("starting", WANTED, "start"),
        ("starting", IDLE, "stop"),
        ("stopping", IDLE, "stop"),
        ("stopping", WANTED, "stop"),
    ],
)
def test_a_standby_is_started_when_it_is_wanted_and_stopped_when_it_has_been_idle(
    state: StandbyState, need: Need, turn: str | None
) -> None:
    """What is `starting` or `stopping` here was left so by a process that is gone."""
    assert next_turn(standby(state), need, now=NOW, timing=TIMING) == turn


def test_one_that_never_was_started_rests() -> None:
    assert next_turn(None, WANTED, now=NOW, timing=TIMING) == "start"
    assert next_turn(None, IDLE, now=NOW, timing=TIMING) is None


@pytest.mark.parametrize("state", ["resting", "starting", "active", "stopping"])
@pytest.mark.parametrize("need", [WANTED, IDLE])
def test_nobody_interferes_with_a_turn_or_a_pause(state: StandbyState, need: Need) -> None:
    assert next_turn(standby(state, NOW + 1), need, now=NOW, timing=TIMING) is None
    over = next_turn(standby(state, NOW), need, now=NOW, timing=TIMING)
    assert over == next_turn(standby(state), need, now=NOW, timing=TIMING)


def test_a_turn_from_before_a_clock_was_set_back_holds_up_nobody() -> None:
    assert next_turn(standby("resting", NOW + 86_400), WANTED, now=NOW, timing=TIMING) == "start"


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_pauses_grow_up_to_a_limit(failures: int, chance: float) -> None:
    pause = TIMING.pause_seconds(failures, chance)
    assert 0.8 * TIMING.first_pause_seconds <= pause <= 1.21 * TIMING.longest_pause_seconds
    assert pause <= TIMING.pause_seconds(failures + 1, chance)
