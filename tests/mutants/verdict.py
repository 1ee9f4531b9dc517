"""What became of a mutant, and the table that tells of all."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.mutants.table import Mutant
from tests.mutants.tree import Tree

__all__ = ["Verdict", "judge", "run_tests", "table", "try_one", "written_into"]

TEST_SECONDS = 120
RUN_SECONDS = 600
QUIETLY = (
    *("-x", "-q", "-rf", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # its plugins are imported already
)
BEGIN, END = "<!-- mutants: written by `make mutants` -->", "<!-- /mutants -->"

_FAILED = re.compile(r"^FAILED tests/(\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
_PASSED, _SOME_FAILED = 0, 1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`killed`: a named test failed. `survived`: none did. `error`: they could not be run as they should."""

    mutant: Mutant
    outcome: Literal["killed", "survived", "error"]
    caught_by: str = ""
    seconds: float = 0.0
    output: str = ""

    def __str__(self) -> str:
        told = f"by {self.caught_by}" if self.caught_by else ""
        return f"{self.outcome:8} {self.mutant.name:36} {self.seconds:5.1f} s  {told}".rstrip()


def run_tests(
    tree: Tree, tests: Sequence[str], *options: str, seconds: float = RUN_SECONDS
) -> tuple[int, str]:
    """pytest's status and output for these tests; the first that fails ends it."""
    named = [f"tests/{test}" for test in tests]
    try:
        return tree.pytest([*QUIETLY, *options, f"--timeout={TEST_SECONDS}", *named], seconds=seconds)
    except TimeoutError as late:
        return -1, str(late)


def judge(mutant: Mutant, status: int, output: str, seconds: float) -> Verdict:
    """Only a test that ran and failed counts: no name that is none, no fixture or import that broke."""
    failed = _FAILED.search(output)
    if status == _PASSED:
        return Verdict(mutant=mutant, outcome="survived", seconds=seconds, output=output)
    if status == _SOME_FAILED and failed is not None:
        hangs = " (it hangs)" if "Failed: Timeout" in output else ""
        return Verdict(
            mutant=mutant, outcome="killed", caught_by=f"{failed[1]}{hangs}", seconds=seconds, output=output
        )
    return Verdict(mutant=mutant, outcome="error", seconds=seconds, output=output)


def try_one(base: Tree, mutant: Mutant, directory: Path) -> Verdict:
    """Take the guard out of a copy of `base`, and see whether a test notices."""
    begun = time.monotonic()
    tree = None
    try:
        tree = base.without(mutant, directory)
        status, output = run_tests(tree, mutant.tests)
    except ValueError as error:
        return Verdict(mutant=mutant, outcome="error", output=str(error))
    finally:
        if tree is not None:
            tree.remove()
    return judge(mutant, status, output, time.monotonic() - begun)


def table(verdicts: Sequence[Verdict], seconds: float) -> str:
    """For docs/proof.md."""
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    rows = [f"| {_guard(verdict)} | {verdict.mutant.file} | {_noticed(verdict)} |" for verdict in verdicts]
    head = ["| taken out | in | what notices |", "|---|---|---|"]
    told = f"{killed} of {len(verdicts)} mutants are killed; the run took {seconds / 60:.0f} minutes."
    return "\n".join([told, "", *head, *rows])


def _guard(verdict: Verdict) -> str:
    return verdict.mutant.guard.replace("|", "\\|")


def _noticed(verdict: Verdict) -> str:
    if not verdict.caught_by:
        return f"**{verdict.outcome}**"
    file, _, test = verdict.caught_by.partition("::")
    test, _, note = test.partition(" ")
    return f"`{test}` ({Path(file).stem}) {note}".rstrip()


def written_into(document: str, text: str) -> str:
    """The document with `text` between its marks. Raises ValueError if these are not there."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the table: it goes between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
