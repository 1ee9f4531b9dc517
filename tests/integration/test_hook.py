"""An operator's command: real processes, bounded in time, nothing of ours in their hands."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from campaigns.hook import HookResult, run_hook
from tests.crowd import eventually


def run(
    directory: Path,
    *command: str,
    within_seconds: float = 20.0,
    stop: threading.Event | None = None,
) -> HookResult:
    return run_hook(
        command, directory=directory, within_seconds=within_seconds, stop=stop or threading.Event()
    )


def python(code: str) -> Sequence[str]:
    return (sys.executable, "-c", code)


def test_a_command_runs_in_its_directory_without_input(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd()); print(repr(sys.stdin.read()))"
    assert run(tmp_path, *python(code)) == HookResult(output=f"{tmp_path} | ''")


def test_arguments_are_never_seen_by_a_shell(tmp_path: Path) -> None:
    result = run(tmp_path, *python("import sys; print(sys.argv[1:])"), "$HOME; touch here", "*")
    assert result.output == "['$HOME; touch here', '*']"
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_fails_says_how(tmp_path: Path) -> None:
    result = run(tmp_path, *python("import sys; print('no disk'); sys.exit(3)"))
    assert (result.ok, result.output) == (False, "no disk")
    assert result.error == f"{sys.executable} ended with status 3"


@pytest.mark.parametrize("number", [9, 40], ids=["SIGKILL", "a real-time signal"])
def test_one_that_a_signal_ends_says_which(tmp_path: Path, number: int) -> None:
    result = run(tmp_path, *python(f"import os; os.kill(os.getpid(), {number})"))
    name = {9: "SIGKILL", 40: "signal 40"}[number]
    assert result.error == f"{sys.executable} was ended by {name}"


@pytest.mark.parametrize("command", ["/nowhere/at/all", "no-such-program-here"])
def test_a_program_that_is_not_there_is_told(tmp_path: Path, command: str) -> None:
    assert run(tmp_path, command).error == f"{command} cannot be run: No such file or directory"


def test_its_output_is_bounded_and_without_addresses(tmp_path: Path) -> None:
    code = "print('x' * 100_000)\nfor n in range(1000): print(n, 'ann@example.com\\x1b[31m')"
    result = run(tmp_path, *python(code))
    assert len(result.output) < 1000
    assert result.output.endswith("999 <address> [31m")
    assert "ann@" not in result.output and "\x1b" not in result.output


def test_our_passwords_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMPAIGNS_PASSWORD_PRIMARY", "hunter2")
    monkeypatch.setenv("CAMPAIGNS_DATABASE", "postgresql://us:hunter2@db/campaigns")
    monkeypatch.setenv("CAMPAIGNS_BROKER", "redis://:hunter2@broker/0")
    monkeypatch.setenv("CAMPAIGNS_ALERTS__WEBHOOK", "https://hooks.example.com/hunter2")
    monkeypatch.setenv("CAMPAIGNS_CONFIG", "here")
    code = "import os; print([name for name in os.environ if name.startswith('CAMPAIGNS_')])"
    assert run(tmp_path, *python(code)).output == "['CAMPAIGNS_CONFIG']"


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def pids(directory: Path) -> list[int]:
    eventually(
        lambda: len((directory / "pids").read_text().split()) == 2 if (directory / "pids").exists() else False
    )
    return [int(pid) for pid in (directory / "pids").read_text().split()]


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    result = run(tmp_path, *python(STUBBORN), within_seconds=3.0)
    assert result.error == f"{sys.executable} was ended: it ran for 3 s"
    eventually(lambda: all(is_gone(pid) for pid in pids(tmp_path)))


def test_it_is_ended_with_the_worker(tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (pids(tmp_path), stop.set())).start()
    result = run(tmp_path, *python(STUBBORN), within_seconds=60.0, stop=stop)
    assert result.error == f"{sys.executable} was ended with the worker"
    eventually(lambda: all(is_gone(pid) for pid in pids(tmp_path)))


def test_what_it_leaves_in_the_background_lives_on_and_is_not_waited_for(tmp_path: Path) -> None:
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    code = f"import subprocess, sys; print(subprocess.Popen({sleeper}).pid)"
    started = time.monotonic()
    result = run(tmp_path, *python(code))
    assert result.ok and time.monotonic() - started < 15
    background = int(result.output)
    assert not is_gone(background)
    os.kill(background, 9)
