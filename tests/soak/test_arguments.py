"""What a soak may be asked for, and what its last lines say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.history import History
from tests.soak.__main__ import DEFECTS, main, parse
from tests.soak.lanes import Log
from tests.soak.verdict import Verdict
from tests.stateful import defects


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--broken", "foo"), "invalid choice: 'foo'"),
        (("--minutes", "0"), "0 is no length of a soak"),
        (("--minutes", "-1"), "-1 is no length of a soak"),
        (("--minutes", "nan"), "nan is no length of a soak"),
    ],
)
def test_what_cannot_be_soaked_is_refused_at_once(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_every_defect_may_be_asked_for() -> None:
    planted = {
        name for name, value in vars(defects).items() if getattr(value, "__module__", "") == defects.__name__
    }
    assert set(DEFECTS) == planted
    assert parse(("--broken", DEFECTS[0])).broken == DEFECTS[0]


def test_a_schedule_says_what_it_depends_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("--schedule", "--seed", "7", "--minutes", "2")) == 0
    assert "a function of seed and minutes" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ((), "workers      0 ended by themselves"),
        ((1, -9, 1), "workers      3 ended by themselves, with -9, 1"),
    ],
)
def test_how_workers_ended_is_told_without_brackets(ended: tuple[int, ...], words: str) -> None:
    nothing: dict[str, Any] = {"violations": (), "drill_mails": 0, "ended_workers": ended}
    told = Verdict(history=HISTORY, log=Log(), **nothing).text()
    assert words in told.splitlines()


HISTORY = History(campaigns=(), deliveries=(), changes=(), reports=(), accepted=())
