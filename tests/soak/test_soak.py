"""A short soak is clean, and one whose workers lack a guard is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _soak(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.soak", "--seed", "99", "--minutes", "1", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak_keeps_the_promise(tmp_path: Path) -> None:
    done = _soak(tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert not list(tmp_path.glob("campaigns-soak-*"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_finds_that_the_sweep_sends_again_what_may_have_been_sent(tmp_path: Path) -> None:
    done = _soak(tmp_path, "--broken", "the_sweep_sends_what_is_committing_again")
    assert done.returncode == 1, done.stdout[-5000:] + done.stderr
    assert "\nD: delivery " in done.stdout, "somebody was served twice"
    assert "make soak MINUTES=1 SEED=99" in done.stdout
    assert list(tmp_path.glob("campaigns-soak-*/history.pickle"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_finds_that_a_pause_holds_back_no_commit_point(tmp_path: Path) -> None:
    four_pauses = ("--seed", "1008")
    done = _soak(tmp_path, *four_pauses, "--broken", "the_commit_point_ignores_a_pause")
    assert done.returncode == 1, done.stdout[-5000:] + done.stderr
    assert "\nK: delivery " in done.stdout
