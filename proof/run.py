"""Check the model of the ledger's protocol, and that it breaks wherever a guard is taken out.

    python proof/run.py                     everything, as `make model` does (some minutes)
    python proof/run.py --only WITHOUT      the cases whose names contain that
    python proof/run.py --trace NAME        one case, and how its property came to be broken, step by step
    python proof/run.py --record            and write the table to proof/results.md

Needs spin and a C compiler: `apt-get install spin gcc` (Debian, Ubuntu), `brew install spin` (macOS). The
exit status is 1 if the model as it is fails anywhere, or if it holds in a case where it must not; 2 without
spin.
What is checked, and what it means, is in docs/proof.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("ledger.pml")
RESULTS = Path(__file__).with_name("results.md")

SAFETY = ("-DSAFETY", "-DNOCLAIM", "-DCOLLAPSE")
SHORTEST = ("-DSAFETY", "-DNOCLAIM", "-DBFS")
"""Breadth first: the first counterexample is as short as any."""
LIVENESS = ("-DCOLLAPSE",)
LIMITS = ("-DVECTORSZ=4096", "-DMEMLIM=12000")
DEPTH = 3_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of the checker. `breaks`: the property that must be found broken; None: all must hold."""

    name: str
    switches: tuple[str, ...] = ()
    breaks: str | None = None
    is_liveness: bool = False

    @property
    def arguments(self) -> list[str]:
        only = [f"ONLY={self.breaks}"] if self.breaks else []
        return [f"-D{switch}" for switch in (*self.switches, *only)]


ENOUGH = "FAULTS=4"
"""So many faults are enough for every counterexample."""


def without(guard: str, breaks: str, *switches: str) -> Case:
    return Case(name=f"WITHOUT_{guard}", switches=(f"WITHOUT_{guard}", ENOUGH, *switches), breaks=breaks)


def assuming_less(assumption: str, breaks: str) -> Case:
    return Case(name=f"IF_{assumption}", switches=(f"IF_{assumption}", ENOUGH), breaks=breaks)


GOOD = (
    Case(name="one recipient, any number of faults"),
    Case(name="the same: nobody is lost", is_liveness=True),
    Case(name="two recipients, 2 faults", switches=("DELIVERIES=2", "FAULTS=2")),
    Case(name="three attempts at once, 2 faults", switches=("WORKERS=3", "FAULTS=2")),
    Case(name="late statements, 3 faults", switches=("LATE_STATEMENTS", "FAULTS=3")),
    Case(name="two resends, 5 faults", switches=("RESENDS=2", "FAULTS=5")),
    Case(
        name="no lease at the commit point, 4 faults", switches=("WITHOUT_LEASE_AT_COMMIT_POINT", "FAULTS=4")
    ),
)
BROKEN = (
    without("COMMIT_POINT", "NOT_TWICE"),
    without("WAITING_FOR_COMMIT", "NOT_TWICE"),
    without("LEASE_AT_DOT", "NOT_STALE"),
    without("FENCE_AT_COMMIT_POINT", "NOT_STALE"),
    without("STATUS_AT_COMMIT_POINT", "STOP_STOPS"),
    without("RISING_FENCE", "NOT_TWICE", "PLAIN_FENCES"),
    without("CLAIM_RAISING_FENCE", "NOT_TWICE", "PLAIN_FENCES"),
    without("CLAIM_CONDITION", "NOT_TWICE"),
    without("FENCE_AT_RECORD", "NOT_TWICE"),
    without("LATE_250", "NOT_AGAIN"),
    without("UNCERTAIN", "NOT_TWICE"),
    without("DOUBT", "SENT_IS_ACCEPTED"),
    without("HOLDING_COMMITTING", "NOT_TWICE"),
    without("HOLDING_UNCERTAIN", "NOT_TWICE"),
    without("SPARING_COMMITTING", "NOT_FORGOTTEN"),
    without("SWEEP", "NOT_LOST"),
    without("REPUBLISHING", "NOT_LOST"),
    without("LOOKING_AGAIN", "FINISHED_IS_OVER"),
)
BEYOND = (
    assuming_less("DATABASE_FORGOT", "NOT_TWICE"),
    assuming_less("SERVER_LIED", "NOT_TWICE"),
    assuming_less("SERVER_TOOK_HALF_A_MAIL", "NOT_TWICE"),
    assuming_less("CLOCK_STOOD_STILL", "NOT_STALE"),
    assuming_less("EVERY_250_COUNTED", "NOT_AGAIN"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the checker said: whether something broke, and how much it looked at."""

    is_broken: bool
    is_complete: bool
    states: int
    depth: int
    seconds: float
    text: str

    def is_as_expected(self, case: Case) -> bool:
        return self.is_broken if case.breaks else self.is_complete and not self.is_broken


def check(case: Case, directory: Path) -> Found:
    """Compile the model with the case's switches, and search all of its states."""
    run(["spin", *case.arguments, "-a", str(MODEL)], directory)
    options = LIVENESS if case.is_liveness else SHORTEST if case.breaks else SAFETY
    run(["cc", "-O1", "-w", *options, *LIMITS, "-o", "pan", "pan.c"], directory)
    started = time.monotonic()
    text = run(["./pan", "-w25", f"-m{DEPTH}", *(["-a"] if case.is_liveness else [])], directory)
    seconds = time.monotonic() - started
    errors = re.search(r"depth reached (\d+), errors: (\d+)", text)
    if errors is None:
        raise SystemExit(f"{case.name}: the checker said nothing that could be understood:\n{text}")
    states = re.search(r"(\d+) states, stored", text)
    return Found(
        is_broken=int(errors[2]) > 0,
        is_complete=not re.search(r"search not completed|max search depth too small|out of memory", text),
        states=int(states[1]) if states else 0,
        depth=int(errors[1]),
        seconds=seconds,
        text=text,
    )


def run(command: Sequence[str], directory: Path) -> str:
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode and command[0] != "./pan":
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def steps(directory: Path, case: Case) -> str:
    """The counterexample: the model's steps that were carried out, as they stand there."""
    told = run(["spin", *case.arguments, "-t", "-p", "-k", f"{MODEL.name}.trail", str(MODEL)], directory)
    source = MODEL.read_text(encoding="utf-8").splitlines()
    guards = re.finditer(r"proc\s+(\d+) \((\w+):\d+\) \S*?:(\d+) \(state \d+\)\s+\[\(", told)
    done = [(one[2], one[1], source[int(one[3]) - 1].split("/*")[0].strip()) for one in guards]
    return "\n".join(
        f"{name} {number}: {step}" for name, number, step in done if step.startswith(":: d_step")
    )


def row(case: Case, found: Found) -> str:
    expected = f"breaks {case.breaks}" if case.breaks else "holds"
    verdict = "ok" if found.is_as_expected(case) else "WRONG"
    counts = f"{found.states:,} | {found.depth:,} | {found.seconds:.0f} s"
    return f"| {case.name} | {expected} | {verdict} | {counts} |"


HEAD = "| case | must | is | states | depth | time |\n|---|---|---|---:|---:|---:|"


def check_all(cases: Sequence[Case]) -> tuple[list[str], bool]:
    lines, is_well = [HEAD], True
    print(HEAD, flush=True)
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            found = check(case, Path(name))
        lines.append(row(case, found))
        is_well = is_well and found.is_as_expected(case)
        print(lines[-1], flush=True)
    return lines, is_well


def trace(case: Case) -> bool:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        found = check(case, directory)
        print(f"{HEAD}\n{row(case, found)}\n")
        if found.is_broken:
            for trail in directory.glob("*.trail"):
                trail.rename(directory / f"{MODEL.name}.trail")
            print(steps(directory, case))
    return found.is_as_expected(case)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the model of the ledger's protocol.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose names contain it")
    parser.add_argument("--trace", metavar="NAME", help="one case, with its counterexample")
    parser.add_argument("--record", action="store_true", help=f"write the table to proof/{RESULTS.name}")
    arguments = parser.parse_args()
    for tool in ("spin", "cc"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing; on Debian and Ubuntu: apt-get install spin gcc", file=sys.stderr)
            return 2
    cases = [*GOOD, *BROKEN, *BEYOND]
    if arguments.trace:
        named = [case for case in cases if case.name == arguments.trace]
        if not named:
            parser.error("no such case; the names are: " + "; ".join(case.name for case in cases))
        return 0 if trace(named[0]) else 1
    started = time.monotonic()
    lines, is_well = check_all([case for case in cases if arguments.only in case.name])
    print(f"\n{'all as it must be' if is_well else 'NOT as it must be'}; {time.monotonic() - started:.0f} s")
    if arguments.record:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
