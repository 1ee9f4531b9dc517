"""`python -m tests.mutants [--jobs N] [NAME ...]`: take out each guard, or those named, and run its tests."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path

from tests.mutants.table import Mutant, mistakes, read_mutants
from tests.mutants.tree import ROOT, Tree
from tests.mutants.verdict import Verdict, run_tests, table, try_one, written_into

DOCUMENT = ROOT / "docs" / "proof.md"
BASELINE_SECONDS = 3600


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to run; shell patterns; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--show", action="store_true", help="print the output of those that are not killed")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not run the tests of the whole tree first"
    )
    arguments = parser.parse_args()
    everything = read_mutants()
    if wrong := mistakes(everything, ROOT):
        print(*wrong, sep="\n")
        return 1
    chosen = _chosen(everything, arguments.names)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as directory:
        base = Tree.of_the_checkout(Path(directory, "base"))
        base.check()
        if not _are_there(base, chosen) or not (arguments.no_baseline or _is_green(base, chosen)):
            return 1
        verdicts = _try_all(base, chosen, arguments.jobs, show=arguments.show)
    seconds = time.monotonic() - begun
    _summarise(verdicts, seconds)
    if not arguments.names:
        DOCUMENT.write_text(written_into(DOCUMENT.read_text(), table(verdicts, seconds)))
    return 0 if all(verdict.outcome == "killed" for verdict in verdicts) else 1


def _chosen(mutants: Sequence[Mutant], patterns: Sequence[str]) -> list[Mutant]:
    for pattern in patterns:
        if not any(fnmatch(mutant.name, pattern) for mutant in mutants):
            sys.exit(f"there is no mutant {pattern}")
    return [one for one in mutants if not patterns or any(fnmatch(one.name, pattern) for pattern in patterns)]


def _tests_of(mutants: Sequence[Mutant]) -> list[str]:
    return sorted({test for mutant in mutants for test in mutant.tests})


def _are_there(base: Tree, mutants: Sequence[Mutant]) -> bool:
    """pytest must know each test by its name."""
    status, output = run_tests(base, _tests_of(mutants), "--collect-only", "-qq")
    if status != 0:
        print(output)
    return status == 0


def _is_green(base: Tree, mutants: Sequence[Mutant]) -> bool:
    """With every guard in its place, all of the tests must pass: otherwise red means nothing."""
    tests = _tests_of(mutants)
    status, output = run_tests(base, tests, seconds=BASELINE_SECONDS)
    if status != 0:
        print(output, "the tests fail although nothing was taken out", sep="\n")
        return False
    print(f"{len(tests)} tests pass with every guard in its place", flush=True)
    return True


def _try_all(base: Tree, mutants: Sequence[Mutant], jobs: int, *, show: bool) -> list[Verdict]:
    verdicts: dict[str, Verdict] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        tried = [pool.submit(try_one, base, one, base.directory.with_name(one.name)) for one in mutants]
        try:
            for future in as_completed(tried):
                verdict = future.result()
                verdicts[verdict.mutant.name] = verdict
                print(verdict, flush=True)
                if verdict.outcome != "killed" and (show or verdict.outcome == "error"):
                    print(verdict.output, flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [verdicts[mutant.name] for mutant in mutants]


def _summarise(verdicts: Sequence[Verdict], seconds: float) -> None:
    left = [verdict for verdict in verdicts if verdict.outcome != "killed"]
    print(
        f"\n{len(verdicts) - len(left)} of {len(verdicts)} mutants were killed in {seconds / 60:.1f} minutes"
    )
    for verdict in left:
        print(f"{verdict.outcome}: {verdict.mutant.name}: {verdict.mutant.guard}")


if __name__ == "__main__":
    sys.exit(main())
