"""Those who are postponed do not all come back at once."""

import pytest

from campaigns.spread import HORIZON_SECONDS, Spread, reach


def _wait(spread: Spread, now: float = 0.0, key: str = "a") -> float:
    return spread.wait_seconds(key, now, not_before_seconds=10.0, interval_seconds=2.0)


def test_one_after_the_other() -> None:
    spread = Spread()
    assert [_wait(spread) for _ in range(4)] == [10, 12, 14, 16]


def test_each_key_by_itself() -> None:
    spread = Spread()
    assert [_wait(spread, key=key) for key in ("a", "b", "a")] == [10, 10, 12]


def test_places_that_passed_are_not_given() -> None:
    spread = Spread()
    _wait(spread)
    assert _wait(spread, now=100.0) == 10


def test_nobody_waits_for_the_places_of_what_may_be_cancelled_by_now() -> None:
    spread = Spread()
    waits = [_wait(spread) for _ in range(2000)]
    assert max(waits) <= 10 + HORIZON_SECONDS
    assert waits.count(10) == 5


def test_what_is_past_is_forgotten() -> None:
    spread = Spread()
    _wait(spread)
    spread.forget_past(1_000.0)
    assert repr(spread) == "<Spread: 0 keys>"


def test_behind_a_wait_that_may_be_wrong_places_reach_no_further_than_it() -> None:
    spread = Spread()
    waits = [
        spread.wait_seconds(
            "a", 0.0, not_before_seconds=1.0, interval_seconds=2.88, horizon_seconds=reach(1.0)
        )
        for _ in range(43)
    ]
    assert waits[:5] == pytest.approx([1.0, 3.88, 6.76, 9.64, 1.0])
    assert max(waits) <= 11.0
    assert [reach(seconds) for seconds in (0.0, 60.0, 86_400.0)] == [10.0, 60.0, HORIZON_SECONDS]
