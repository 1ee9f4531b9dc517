"""The runner of the model checker: what it makes of the checker's words, and of a counterexample."""

import re
import shutil
from pathlib import Path

import pytest

from proof import run as runner
from proof.run import (
    BEYOND,
    BROKEN,
    GOOD,
    PROPERTIES,
    Case,
    Found,
    Source,
    check,
    final_values,
    main,
    steps,
    understood,
)

HOLDS = Case(name="holds")
BREAKS = Case(name="breaks", breaks="NOT_STALE")

HEAD = "(Spin Version 6.5.2 -- 6 December 2019)\n"
SEARCH = """\t+ Partial Order Reduction

Full statespace search for:
\tnever claim         \t- (not selected)
\tassertion violations\t+
\tacceptance   cycles \t+ (fairness disabled)

State-vector 168 byte, depth reached 49, errors: 0
     1024 states, stored
"""
MEMORY = "    2.781\ttotal actual memory usage\n"
COMPLETE = HEAD + SEARCH + MEMORY
OUT_OF_MEMORY = "pan: reached -DMEMLIM bound\n\t5.24288e+06 bytes limit\n" + HEAD
NOT_COMPLETED = "Warning: Search not completed\n"
STALE = "pan:1: assertion violated (((5!=0)&&(5!=5))||(a[w].latest&&(state[0]==5))) (at depth 55)\n"
ONE_ERROR = SEARCH.replace("errors: 0", "errors: 1")


def verdict(text: str, case: Case = HOLDS) -> str:
    return understood(text).verdict(case)


def test_a_search_to_the_end_is_ok() -> None:
    found = understood(COMPLETE, 1.5)
    assert found == Found(
        broken=None,
        is_complete=True,
        states=1024,
        depth=49,
        megabytes=2.781,
        seconds=1.5,
        text=COMPLETE,
    )
    assert found.verdict(HOLDS) == "ok"


@pytest.mark.parametrize(
    "text",
    [
        OUT_OF_MEMORY + SEARCH + MEMORY,
        HEAD + NOT_COMPLETED + SEARCH + MEMORY,
        "error: max search depth too small\n" + COMPLETE,
        "pan: out of memory\n" + COMPLETE,
        "pan: error: VECTORSZ is too small, edit pan.h\n" + COMPLETE,
        COMPLETE.replace("1024 states", "0 states"),
        COMPLETE.replace("Full statespace", "Bit statespace"),
        COMPLETE.replace("Full statespace", "Hash-Compact 4"),
        "Depth=      10 States=       11\nKilled\n",
        "",
    ],
)
def test_a_search_that_ended_before_its_end_shows_nothing(text: str) -> None:
    assert verdict(text) == "NOT COMPLETED"
    assert verdict(text, BREAKS) == "NOT COMPLETED"
    assert not understood(text).is_as_expected(HOLDS)


def test_what_breaks_is_named() -> None:
    text = STALE + HEAD + NOT_COMPLETED + ONE_ERROR + MEMORY
    assert understood(text).broken == "NOT_STALE"
    assert verdict(text) == "WRONG"
    assert verdict(text, BREAKS) == "ok"
    assert verdict(text, Case(name="another", breaks="NOT_TWICE")) == "WRONG"
    assert verdict(COMPLETE, BREAKS) == "WRONG"
    assert understood("pan:1: acceptance cycle (at depth 9)\n" + ONE_ERROR).broken == "nobody_is_lost"
    assert understood("pan:1: invalid end state (at depth 9)\n" + ONE_ERROR).broken == "invalid end state"


def test_the_properties_are_those_of_the_model() -> None:
    model = runner.MODEL.read_text(encoding="utf-8")
    numbers = dict(re.findall(r"^#define (\w+) +(\d)$", model, re.MULTILINE))
    assert [numbers[name] for name in PROPERTIES] == [str(number) for number, _ in enumerate(PROPERTIES, 1)]
    assert {*re.findall(r"PROMISED\(([A-Z_]+),", model)} == {*PROPERTIES}


def test_the_record_is_of_the_model_as_it_is() -> None:
    record = runner.RESULTS.read_text(encoding="utf-8")
    recorded = re.search(r"sha256 (\w+)", record.splitlines()[0])
    assert recorded, "the record does not say which model it is of"
    assert recorded[1] == runner.fingerprint(), "the model has changed: run `python proof/run.py --record`"
    assert [row.split(" | ")[0] for row in record.splitlines() if " | ok | " in row] == [
        f"| {case.name}" for case in (*GOOD, *BROKEN, *BEYOND)
    ]


def test_each_assumption_is_named_among_what_is_not_promised() -> None:
    text = (runner.MODEL.parents[1] / "docs/proof.md").read_text(encoding="utf-8")
    beyond = text.partition("## What is not promised")[2].partition("\n## ")[0]
    assert {*re.findall(r"`(IF_[A-Z0-9_]+)`", beyond)} == {case.name for case in BEYOND}


MODEL = """proctype Worker(byte w) {                 /* what it is */
    do
    :: d_step { a[w].step == holding -> FAILS;
        forget(w) }                       /* gone */
    /* ---- the dot: nothing is awaited between the look
     *      and the write */
#ifdef WITHOUT_LEASE
    :: d_step { a[w].step == granted ->
#else
    :: d_step { a[w].step == granted && a[w].clock_over -> stop(w) }
    :: d_step { a[w].step == granted && !a[w].clock_over ->
#endif
        write_dot(w) }
    od
}
"""


def test_a_step_is_told_whole() -> None:
    source = Source(MODEL)
    assert source.step(3) == ":: d_step { a[w].step == holding -> FAILS; forget(w) }"
    assert source.words(3) == "what it is; gone"
    assert source.step(8) == ":: d_step { a[w].step == granted -> write_dot(w) }"
    assert source.step(11) == ":: d_step { a[w].step == granted && !a[w].clock_over -> write_dot(w) }"
    assert source.words(8) == "the dot: nothing is awaited between the look and the write"


NESTED = """proctype Worker(byte w) {
#ifdef WITHOUT_LEASE
    :: d_step { a[w].step == granted ->
#else
#ifdef IF_FROZEN
    :: d_step { a[w].step == granted && !a[w].clock_over -> a[w].step = looked }
    :: d_step { a[w].step == looked ->
#else
    :: d_step { a[w].step == granted && !a[w].clock_over ->
#endif
#endif
        write_dot(w) }
"""


def test_a_step_under_two_conditions_is_told_whole() -> None:
    told = [Source(NESTED).step(line) for line in (3, 6, 7, 9)]
    assert told == [
        ":: d_step { a[w].step == granted -> write_dot(w) }",
        ":: d_step { a[w].step == granted && !a[w].clock_over -> a[w].step = looked }",
        ":: d_step { a[w].step == looked -> write_dot(w) }",
        ":: d_step { a[w].step == granted && !a[w].clock_over -> write_dot(w) }",
    ]


TOLD = """Starting Worker with pid 5
 47:\tproc  0 (:init::1) /m/ledger.pml:612 (state 53)\t[d = 0]
\t\t:init:(0):d = 0
 48:\tproc  5 (Worker:1) /m/ledger.pml:3 (state 4)\t[((a[w].step==8))]
 48:\tproc  5 (Worker:1) /m/ledger.pml:4 (state 5)\t[state[d] = 7]
\t\tstate[0] = claimed
\t\ti = 1
 48:\tproc  5 (Worker:1) /m/ledger.pml:4 (state 6)\t[state[d] = 2]
\t\tstate[0] = uncertain
\t\taccepted[0] = 0
 49:\tproc  5 (Worker:1) /m/ledger.pml:8 (state 9) <valid end state>\t[((a[w].step==7))]
spin: /m/ledger.pml:8, Error: assertion violated
 50:\tproc  5 (Worker:1) /m/ledger.pml:8 (state 9)\t[assert((a[w].latest))]
spin: trail ends after 50 steps
#processes: 15
\t\tstatus = running
\t\tstate[0] = uncertain
\t\ta[0].step = idle
\t\ta[0].wire = nothing
\t\ta[1].step = at_dot
\t\ta[1].wire = dot
\t\taccepted[0] = 0
\t\ti = 0
 50:\tproc  5 (Worker:1) /m/ledger.pml:2 (state 8) <valid end state>
\t\tWorker(5):w = 1
"""


def test_a_counterexample_reads_in_words() -> None:
    source = Source(MODEL)
    told = steps(TOLD.replace("(:init::1) /m/ledger.pml:612", "(:init::1) /m/ledger.pml:14"), source)
    assert told.splitlines() == [
        "  1. Worker(w = 1): what it is; gone",
        "       :: d_step { a[w].step == holding -> FAILS; forget(w) }",
        "       now state[0] = uncertain",
        "  2. Worker(w = 1): the dot: nothing is awaited between the look and the write",
        "       :: d_step { a[w].step == granted -> write_dot(w) }",
    ]
    assert final_values(TOLD).splitlines() == [
        "At the end: status = running, state[0] = uncertain, accepted[0] = 0",
        "Attempt 1: step = at_dot, wire = dot",
    ]


@pytest.mark.parametrize("option", ["--only", "--trace"])
def test_a_name_that_is_no_case_s_is_an_error_that_lists_them(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, "NO_SUCH"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert "  WITHOUT_SWEEP" in said
    assert f"  {GOOD[0].name}" in said


@pytest.mark.parametrize("option", ["--only", "--trace"])
def test_a_part_is_not_recorded(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--record", option, "WITHOUT_SWEEP"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def found(broken: str | None) -> Found:
    return Found(broken=broken, is_complete=True, states=1, depth=1, megabytes=2.0, seconds=0.0, text="")


@pytest.mark.parametrize("is_well", [True, False])
def test_only_what_is_well_is_recorded(
    is_well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(runner, "check", lambda case, _: found(case.breaks if is_well else "NOT_TWICE"))
    monkeypatch.setattr(runner, "run", lambda *_: "Spin Version 6.5.2\n")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert main(["--record"]) == (0 if is_well else 1)
    assert (tmp_path / "results.md").exists() == is_well
    if is_well:
        head = (tmp_path / "results.md").read_text().splitlines()[0]
        assert head.startswith("Spin Version 6.5.2; ")
        assert f"sha256 {runner.fingerprint()}" in head
        assert head.endswith("largest memory use 2 MB")


needs_spin = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("cc")), reason="needs spin and a C compiler"
)


@needs_spin
def test_a_checker_without_memory_has_searched_nothing(tmp_path: Path) -> None:
    cheapest = next(case for case in GOOD if case.name == "three attempts at once, 2 faults")
    for megabytes in (5, 430):  # before it begins; in the middle of it
        of_little = check(cheapest, tmp_path, megabytes)
        assert of_little.broken is None
        assert bool(of_little.states) == (megabytes > 5)
        assert of_little.verdict(cheapest) == "NOT COMPLETED"


@needs_spin
def test_a_counterexample_is_told_from_its_beginning_to_what_broke(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "WITHOUT_SWEEP" in {case.name for case in BROKEN}
    assert main(["--trace", "WITHOUT_SWEEP"]) == 0
    said = capsys.readouterr().out
    assert "1. Producer(d = 0): Ledger.enqueue, then publish; committed as queued, for server 0\n" in said
    assert "claimed, and the reply was lost\n" in said
    assert "       now state[0] = claimed\n" in said
    assert "Broken: NOT_LOST: nothing can happen any more" in said
    assert "accepted[0] = 0" in said
