"""The table of mutants: every guard in it is where it says, and what is made of the tests' results."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.table import Mutant, mistakes, mutated, read_mutants
from tests.mutants.tree import ROOT
from tests.mutants.verdict import BEGIN, END, Verdict, judge, table, written_into

MUTANT = Mutant(
    name="limit",
    guard="nobody passes | without a ticket",
    file="door.py",
    old="if ticket:",
    new="if True:",
    tests=("unit/test_door.py::test_no_ticket_no_entry[late]",),
)
SOURCE = "if ticket:\n    enter()\n"
TEST = "def test_no_ticket_no_entry():\n    ...\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "door.py").write_text(SOURCE)
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_door.py").write_text(TEST)
    return tmp_path


def test_every_guard_of_the_table_is_in_the_code_and_every_test_is_there() -> None:
    mutants = read_mutants()
    assert mistakes(mutants, ROOT) == []
    assert len(mutants) > 200


def test_a_guard_is_taken_out() -> None:
    assert mutated(SOURCE, MUTANT) == "if True:\n    enter()\n"


@pytest.mark.parametrize(
    ("source", "new", "why"),
    [
        ("enter()\n", "if True:", "0 times"),
        (SOURCE * 2, "if True:", "2 times"),
        (SOURCE, "if ticket:", "changes nothing"),
        (SOURCE, "if", "no Python"),
    ],
)
def test_a_guard_that_is_not_there_once_is_an_error(source: str, new: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        mutated(source, replace(MUTANT, new=new))


def test_what_is_wrong_with_a_table_is_found_before_anything_runs(root: Path) -> None:
    assert mistakes([MUTANT], root) == []
    renamed = replace(MUTANT, name="other", tests=("unit/test_door.py::test_gone",))
    gone = replace(MUTANT, name="gone", old="if money:", tests=())
    assert mistakes([MUTANT, MUTANT, renamed, gone], root) == [
        "limit: there are two of this name",
        "other: there is no test unit/test_door.py::test_gone",
        "gone: its text is 0 times in door.py, not once",
        "gone: no test is named",
    ]


FAILED = "FAILED tests/unit/test_door.py::test_no_ticket_no_entry[late] - assert 1 == 2\n1 failed"
BROKEN = "ERROR tests/unit/test_door.py::test_no_ticket_no_entry - no database\n1 error"


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (0, "1 passed", "survived"),
        (1, FAILED, "killed"),
        (1, BROKEN, "error"),
        (2, "ImportError", "error"),
        (4, "not found", "error"),
        (5, "no tests ran", "error"),
        (-1, "not within 600 s", "error"),
    ],
)
def test_only_a_test_that_fails_kills(status: int, output: str, outcome: str) -> None:
    verdict = judge(MUTANT, status, output, 1.0)
    assert verdict.outcome == outcome
    assert (verdict.caught_by == "unit/test_door.py::test_no_ticket_no_entry") is (outcome == "killed")


def test_the_table_goes_where_it_belongs() -> None:
    killed, survived = judge(MUTANT, 1, FAILED, 1.0), Verdict(mutant=MUTANT, outcome="survived")
    document = written_into(f"before\n{BEGIN}\nold\n{END}\nafter\n", table([killed, survived], 90.0))
    assert document.splitlines() == [
        "before",
        BEGIN,
        "",
        "1 of 2 mutants are killed; the run took 2 minutes.",
        "",
        "| taken out | in | what notices |",
        "|---|---|---|",
        "| nobody passes \\| without a ticket | door.py | `test_no_ticket_no_entry` (test_door) |",
        "| nobody passes \\| without a ticket | door.py | **survived** |",
        "",
        END,
        "after",
    ]
    assert written_into(document, "new").count(BEGIN) == 1
    with pytest.raises(ValueError, match="no place"):
        written_into("no marks", "new")
