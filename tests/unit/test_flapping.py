"""How often a server that fails now and then changes: minutes of traffic in no time, by a simulated clock."""

import math
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from campaigns.board import Board, Change, Heard, Rules, changes
from campaigns.breaker import CALM_SECONDS, BreakerState, Fault

TICK_SECONDS = 0.1
MOST_IN_THE_FIRST_MINUTE = 12
MOST_IN_A_LATER_MINUTE = 6
FAULT = Fault(reason="421 4.3.2 try later")


class Traffic:
    """Mail for a primary that fails at random and a secondary that works, shared 70 to 30."""

    def __init__(self, *, per_second: float, failing: float, seed: int) -> None:
        self.now = 1_700_000_000.0
        self.board = Board()
        self.rules = Rules(servers=frozenset({"primary", "secondary"}))
        self.per_second = per_second
        self.failing = failing
        self.dice = random.Random(seed)
        self.failed = 0
        self._owed = 0.0

    def run(self, seconds: float) -> list[tuple[float, Change]]:
        """What changed, and how long after the beginning."""
        started, found = self.now, []
        while self.now - started < seconds:
            self.now += TICK_SECONDS
            before = self.board
            for board in self._steps():
                made = changes(before, board, self.rules.policy)
                found += [(self.now - started, change) for change in made]
                before = board
            self.board = before
        return found

    def _steps(self) -> Iterator[Board]:
        board = self.board.at(self.now, self.rules)
        yield board
        breaker = board.of("primary")
        if breaker.state is BreakerState.HALF_OPEN:
            if self.dice.random() < TICK_SECONDS / 0.4:  # a trial takes a moment, and so does the next mail
                yield from self._trial(board)
            return
        self._owed += self.per_second * TICK_SECONDS * 0.7 * breaker.percent(self.rules.policy) / 100
        count, self._owed = int(self._owed), self._owed % 1
        if count:
            yield board.after("primary", self._mails(count), self.now, self.rules, self.dice.random())

    def _mails(self, count: int) -> Iterator[Heard]:
        successes = 0
        for _ in range(count):
            if self.dice.random() < self.failing:
                self.failed += 1
                yield Heard(successes=successes, fault=FAULT)
                successes = 0
            else:
                successes += 1
        yield Heard(successes=successes)

    def _trial(self, board: Board) -> Iterator[Board]:
        probed = board.probed("primary", self.now, self.rules, token="t", seconds=20)
        assert probed is not None
        yield probed
        if self.dice.random() < self.failing:
            fault = Fault(reason=FAULT.reason, token="t")
            yield probed.after("primary", [Heard(fault=fault)], self.now, self.rules, self.dice.random())
        else:
            yield probed.after_trial("primary", "t", self.now, self.rules)


def by_minute(found: list[tuple[float, Change]]) -> Counter[int]:
    """The most changes by the minute of a trouble; one begins after a minute of calm."""
    counted, began, last, was_whole = Counter[tuple[float, int]](), -math.inf, -math.inf, True
    for at, change in found:
        if was_whole and at - last >= CALM_SECONDS:
            began = at
        counted[began, int((at - began) // 60)] += 1
        last, was_whole = at, change.after == "100 %"
    most = Counter[int]()
    for (_, minute), count in counted.items():
        most[minute] = max(most[minute], count)
    return most


@pytest.mark.parametrize("per_second", [2, 20, 100, 500])
def test_a_server_that_fails_three_mails_in_ten_changes_a_few_times_a_minute_at_most(
    per_second: int,
) -> None:
    most = Counter[int]()
    for seed in range(12):
        found = Traffic(per_second=per_second, failing=0.3, seed=seed).run(600)
        most |= by_minute(found)
    first, later = most[0], max(most[minute] for minute in range(1, 10))
    print(f"{per_second} mails/s, 30 % failing: at most {first} changes in the first minute, {later} later")
    assert first <= MOST_IN_THE_FIRST_MINUTE
    assert later <= MOST_IN_A_LATER_MINUTE


def test_a_server_that_always_fails_is_tried_ever_more_seldom() -> None:
    traffic = Traffic(per_second=100, failing=1.0, seed=1)
    minutes = by_minute(traffic.run(1200))
    assert minutes[0] <= MOST_IN_THE_FIRST_MINUTE
    assert all(minutes[minute] <= 3 for minute in range(2, 20))
    assert traffic.failed <= 8, "what it cost to find out; the trials beside"


def test_a_server_that_works_again_has_all_of_its_share_after_the_steps() -> None:
    traffic = Traffic(per_second=100, failing=1.0, seed=1)
    traffic.run(5)
    traffic.failing = 0.0
    found = traffic.run(60)
    states = [(change.before, change.after) for _, change in found]
    assert states[-4:] == [("half-open", "closed"), ("10 %", "25 %"), ("25 %", "50 %"), ("50 %", "100 %")]
    closed_at, whole_at = found[-4][0], found[-1][0]
    assert 15 <= whole_at - closed_at < 17


def test_a_fault_in_two_thousand_does_not_keep_a_server_from_coming_back() -> None:
    traffic = Traffic(per_second=100, failing=1.0, seed=3)
    traffic.run(5)
    traffic.failing = 0.0005
    traffic.run(120)
    assert traffic.board.of("primary").percent(traffic.rules.policy) == 100
