"""What the log says of mail that was moved."""

from __future__ import annotations

import logging

import pytest

from campaigns.moved_mail import LINE_SECONDS, MovedMail


class Told:
    """A process whose turns take a second each."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 100.0
        self.moved = MovedMail("mail was moved", "server", monotonic=lambda: self.now)
        caplog.set_level(logging.INFO, "campaigns.moved_mail")
        self._caplog = caplog

    def turns(self, count: int, *, moving: int = 0, failing: bool = True) -> list[tuple[str, int]]:
        """Level and count of each line meanwhile."""
        self._caplog.clear()
        for _ in range(count):
            self.moved.add("primary", moving, level=logging.WARNING if failing else logging.INFO)
            self.moved.sum_up(ongoing={"primary"} if failing else ())
            self.now += 1
        return [(record.levelname, vars(record)["count"]) for record in self._caplog.records]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def test_a_failing_servers_queue_is_a_warning_and_what_follows_is_summed_up(told: Told) -> None:
    assert told.turns(1, moving=600) == [("WARNING", 600)]
    assert told.turns(int(LINE_SECONDS) - 1, moving=1) == []
    assert told.turns(2, moving=1) == [("INFO", 60)]
    told.turns(300)
    assert told.turns(1, moving=1) == [("INFO", 1)], "it fails all the time"
    assert told.turns(1) == []


def test_single_mails_that_are_evened_out_are_a_line_a_minute(told: Told) -> None:
    lines = told.turns(int(3 * LINE_SECONDS), moving=1, failing=False)
    assert [level for level, _ in lines] == ["INFO"] * len(lines)
    assert 2 <= len(lines) <= 4


def test_the_next_failure_is_a_warning_again(told: Told) -> None:
    assert told.turns(1, moving=600) == [("WARNING", 600)]
    assert told.turns(int(LINE_SECONDS) + 1, failing=False) == []
    assert told.turns(1, moving=500) == [("WARNING", 500)]
