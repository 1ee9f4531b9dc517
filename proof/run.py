"""Check the model of the ledger's protocol, and that it breaks wherever a guard is taken out.

    python proof/run.py                     everything, as `make model` does (about half an hour)
    python proof/run.py --only WITHOUT      the cases whose names contain that
    python proof/run.py --trace NAME        one case, and how its property came to be broken, step by step
    python proof/run.py --record            everything, and write the table to proof/results.md if all is well

Needs spin and a C compiler: `apt-get install spin gcc` (Debian, Ubuntu), `brew install spin` (macOS). The
exit status is 1 if the model as it is fails anywhere, if not all of it could be searched, or if it holds in a
case where it must not; 2 without spin.
What is checked, and what it means, is in docs/proof.md.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MODEL = Path(__file__).with_name("ledger.pml")
RESULTS = Path(__file__).with_name("results.md")

SAFETY = ("-DSAFETY", "-DNOCLAIM", "-DCOLLAPSE")
SHORTEST = ("-DSAFETY", "-DNOCLAIM", "-DBFS")
"""Breadth first: the first counterexample is as short as any."""
LIVENESS = ("-DCOLLAPSE",)
MEGABYTES = 12_000
DEPTH = 3_000_000

PROPERTIES = {
    "NOT_TWICE": "a mail was accepted once more than the operator asked for",
    "NOT_FORGOTTEN": "a server accepted the mail, and the ledger neither says so nor has any doubt",
    "SENT_IS_ACCEPTED": "the ledger says `sent`, and no server accepted the mail",
    "FINISHED_IS_OVER": "the campaign is finished, and somebody in it is not",
    "NOT_STALE": "an attempt went on with a delivery that was not its own any more",
    "STOP_STOPS": "an attempt passed its commit point in a campaign that is paused or cancelled",
    "NOT_AGAIN": "an attempt passed its commit point, and the ledger knew that the mail was accepted",
    "NOT_LOST": "nothing can happen any more, and it is not over for everybody",
}
"""What it means that one is broken, in the order of their numbers in the model."""
NOBODY_IS_LOST = "nobody_is_lost"
BROKEN_IN_WORDS = {**PROPERTIES, NOBODY_IS_LOST: "it goes on for ever, and is never over for everybody"}


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
    Case(
        name="frozen at the write: all but the stale dot",
        switches=("IF_FROZEN_AT_THE_WRITE", "STALE_DOTS"),
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
    assuming_less("FROZEN_AT_THE_WRITE", "NOT_STALE"),
    assuming_less("EVERY_250_COUNTED", "NOT_AGAIN"),
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the checker said: which property broke, if any, and how much it looked at."""

    broken: str | None
    is_complete: bool
    states: int
    depth: int
    megabytes: float
    seconds: float
    text: str

    def verdict(self, case: Case) -> str:
        """`ok` only for what was seen: the very property broken, or all states searched and none broken."""
        if self.broken is None and not (self.is_complete and self.states):
            return "NOT COMPLETED"
        return "ok" if self.broken == case.breaks else "WRONG"

    def is_as_expected(self, case: Case) -> bool:
        return self.verdict(case) == "ok"


GAVE_UP = re.compile(
    r"not completed|too small|out of memory|MEMLIM|not enough memory|aborting|"
    r"(cannot|could not) (allocate|resize)",
    re.IGNORECASE,
)


def understood(text: str, seconds: float = 0.0) -> Found:
    """The checker's output. What it does not say it has searched, it has not: it may have been killed."""
    errors = re.search(r"depth reached (\d+), errors: (\d+)", text)
    states = re.search(r"(\d+) states, stored", text)
    used = re.findall(r"([\d.]+)\s+total actual memory usage", text)
    return Found(
        broken=broken_property(text) if errors and int(errors[2]) else None,
        is_complete=errors is not None and "Full statespace search" in text and not GAVE_UP.search(text),
        states=int(states[1]) if states else 0,
        depth=int(errors[1]) if errors else 0,
        megabytes=float(used[-1]) if used else 0.0,
        seconds=seconds,
        text=text,
    )


def broken_property(text: str) -> str:
    """By its number, which PROMISED has in it; what else went wrong is in the checker's own words."""
    if re.search(r"^pan:\d+: acceptance cycle", text, re.MULTILINE):
        return NOBODY_IS_LOST
    number = re.search(r"assertion violated \(\(\((\d+)!=0\)&&\(\1!=(\d+)\)", text)
    if number:
        return list(PROPERTIES)[int(number[2]) - 1]
    said = re.search(r"^pan:\d+: (.*?)(?: \(at depth.*)?$", text, re.MULTILINE)
    return said[1] if said else "an error that nobody knows"


def check(case: Case, directory: Path, megabytes: int = MEGABYTES) -> Found:
    """Compile the model with the case's switches, and search all of its states."""
    run(["spin", *case.arguments, "-a", str(MODEL)], directory)
    options = LIVENESS if case.is_liveness else SHORTEST if case.breaks else SAFETY
    limits = ("-DVECTORSZ=4096", f"-DMEMLIM={megabytes}")
    run(["cc", "-O1", "-w", *options, *limits, "-o", "pan", "pan.c"], directory)
    started = time.monotonic()
    text = run(["./pan", "-w25", f"-m{DEPTH}", *(["-a"] if case.is_liveness else [])], directory)
    return understood(text, time.monotonic() - started)


def run(command: Sequence[str], directory: Path) -> str:
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode and command[0] != "./pan":
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


COMMENT = re.compile(r"/\*\s*(?:-{4}\s*)?(.*?)\s*\*/", re.DOTALL)


class Source:
    """The model's text, to find what stands at a line of it."""

    def __init__(self, text: str) -> None:
        # a comment of several lines is put on its first one, and the others stay, empty
        one_line = re.compile(r"/\*.*?\*/", re.DOTALL)
        self._lines = one_line.sub(
            lambda found: re.sub(r"\s*\n[ *]*", " ", found[0]) + "\n" * found[0].count("\n"), text
        ).splitlines()

    def step(self, line: int) -> str:
        """The whole step that begins there, on one line, without its comments."""
        return " ".join(filter(None, (COMMENT.sub("", text).strip() for text in self._step_lines(line))))

    def words(self, line: int) -> str:
        """What the model says of that step: the heading that it stands under, and the step's own comments."""
        own = (found for text in self._step_lines(line) for found in COMMENT.findall(text))
        return "; ".join(filter(None, (self._heading(line), *own)))

    def _step_lines(self, line: int) -> list[str]:
        """Until its braces close. It may lie in an `#ifdef`, and then it has nothing of the `#else`."""
        lines, depth, is_skipped = [], 0, False
        for text in self._lines[line - 1 :]:
            if text.startswith("#"):
                is_skipped = text.startswith(("#else", "#elif")) or (is_skipped and text.strip() != "#endif")
            elif not is_skipped:
                lines.append(text)
                code = COMMENT.sub("", text)
                depth += code.count("{") - code.count("}")
                if code.strip() and depth <= 0:
                    break
        return lines

    def _heading(self, line: int) -> str:
        for text in reversed(self._lines[: line - 1]):
            if text.startswith(("#if", "proctype")) or "/* ---- " in text:
                comment = COMMENT.search(text)
                if comment or text.startswith("proctype"):
                    return comment[1] if comment else ""
        return ""


SCRATCH = {"n", "i", "used", "x", "faults"}
STEP = re.compile(r"\s*(\d+):\s+proc\s+(\d+) \((\w+):\d+\) \S*?:(\d+) .*?\[(.*)\]$")
CHANGE = re.compile(r"\t+(\w+(?:\[\d+\])?) = (\w+)$")


def steps(told: str, source: Source) -> str:
    """The counterexample that `spin -t -p -g -l` told: who did what, in the model's words and code."""
    course, _, end = told.partition("#processes:")
    arguments: dict[str, list[str]] = {}
    for process, name, value in re.findall(r"^\t+\w+\((\d+)\):(\w+) = (\d+)$", end, re.MULTILINE):
        arguments.setdefault(process, []).insert(0, f"{name} = {value}")
    blocks: list[str] = []
    number, count = "", 0
    before: dict[str, str] = {}
    after: dict[str, str] = {}

    def tell_changes() -> None:
        changes = [f"{name} = {value}" for name, value in after.items() if before.get(name, "0") != value]
        if changes:
            blocks.append(f"       now {', '.join(changes)}")
        before.update(after)

    for text in course.splitlines():
        if (step := STEP.match(text)) and step[1] != number and not step[5].startswith("assert"):
            tell_changes()
            number, count, line = step[1], count + 1, int(step[4])
            who = f"{step[3]}({', '.join(arguments.get(step[2], []))})"
            blocks.append(f"{count:3}. {who}: {source.words(line)}\n       {source.step(line)}")
        elif (change := CHANGE.match(text)) and change[1] not in SCRATCH:
            after[change[1]] = change[2]
        elif "START OF CYCLE" in text:
            tell_changes()
            blocks.append("From here on for ever:")
    tell_changes()
    return "\n".join(blocks)


def final_values(told: str) -> str:
    """What ledger, broker and the proof's memory hold at the end, and each attempt that is at work."""
    end = told.partition("#processes:")[2]
    shared: list[str] = []
    attempts: dict[str, list[str]] = {}
    for name, value in re.findall(r"^\t+([\w.\[\]]+) = (\w+)$", end, re.MULTILINE):
        if of_attempt := re.fullmatch(r"a\[(\d+)\]\.(\w+)", name):
            attempts.setdefault(of_attempt[1], []).append(f"{of_attempt[2]} = {value}")
        elif name not in SCRATCH:
            shared.append(f"{name} = {value}")
    working = (f"Attempt {w}: {', '.join(held)}" for w, held in attempts.items() if "step = idle" not in held)
    return "\n".join([f"At the end: {', '.join(shared)}", *working])


def row(case: Case, found: Found) -> str:
    expected = f"breaks {case.breaks}" if case.breaks else "holds"
    counts = f"{found.states:,} | {found.depth:,} | {found.seconds:.0f} s"
    return f"| {case.name} | {expected} | {found.verdict(case)} | {counts} |"


HEAD = "| case | must | is | states | depth | time |\n|---|---|---|---:|---:|---:|"


@dataclass(frozen=True)
class Table:
    """All rows, and what is told of the whole run."""

    lines: list[str]
    is_well: bool
    megabytes: float


def check_all(cases: Sequence[Case]) -> Table:
    lines, is_well, megabytes = [HEAD], True, 0.0
    print(HEAD, flush=True)
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            found = check(case, Path(name))
        lines.append(row(case, found))
        megabytes = max(megabytes, found.megabytes)
        print(lines[-1], flush=True)
        if not found.is_as_expected(case):
            is_well = False
            print(found.text, file=sys.stderr, flush=True)
    return Table(lines, is_well, megabytes)


def trace(case: Case) -> bool:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        found = check(case, directory)
        print(f"{HEAD}\n{row(case, found)}\n")
        if found.broken is None:
            print("no counterexample" if found.is_as_expected(case) else f"no counterexample\n{found.text}")
        else:
            for trail in directory.glob("*.trail"):
                trail.rename(directory / f"{MODEL.name}.trail")
            replay = [
                "spin",
                *case.arguments,
                "-t",
                "-p",
                "-g",
                "-l",
                "-k",
                f"{MODEL.name}.trail",
                str(MODEL),
            ]
            told = run(replay, directory)
            print(steps(told, Source(MODEL.read_text(encoding="utf-8"))))
            words = BROKEN_IN_WORDS.get(found.broken, "the model itself is at fault")
            print(f"\nBroken: {found.broken}: {words}.\n{final_values(told)}")
    return found.is_as_expected(case)


def fingerprint() -> str:
    return hashlib.sha256(MODEL.read_bytes()).hexdigest()[:16]


def provenance(model: str, megabytes: float) -> str:
    """Where a record comes from: the checker, the day, the model, and what it took."""
    spin = run(["spin", "-V"], MODEL.parent).strip()
    day = datetime.now(UTC).date()
    return f"{spin}; {day}; {MODEL.name} with sha256 {model}...; largest memory use {megabytes:,.0f} MB"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the model of the ledger's protocol.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", default="", metavar="TEXT", help="only the cases whose names contain it")
    which.add_argument("--trace", metavar="NAME", help="one case, with its counterexample")
    which.add_argument("--record", action="store_true", help=f"write the table to proof/{RESULTS.name}")
    arguments = parser.parse_args(given)
    cases = [*GOOD, *BROKEN, *BEYOND]
    if arguments.trace is not None:
        chosen = [case for case in cases if case.name == arguments.trace]
    else:
        chosen = [case for case in cases if arguments.only in case.name]
    if not chosen:
        parser.error("\n  ".join(["no such case; there are:", *(case.name for case in cases)]))
    for tool in ("spin", "cc"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing; on Debian and Ubuntu: apt-get install spin gcc", file=sys.stderr)
            return 2
    if arguments.trace is not None:
        return 0 if trace(chosen[0]) else 1
    started, model = time.monotonic(), fingerprint()
    table = check_all(chosen)
    verdict = "all as it must be" if table.is_well else "NOT as it must be"
    print(f"\n{verdict}; {time.monotonic() - started:.0f} s")
    if arguments.record:
        if not table.is_well or fingerprint() != model:
            print(f"not recorded{': the model was changed meanwhile' if table.is_well else ''}")
            return 1
        head = provenance(model, table.megabytes)
        RESULTS.write_text("\n".join([head, "", *table.lines]) + "\n", encoding="utf-8")
    return 0 if table.is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
