"""Runs an operator's command: an argument list without a shell, bounded in time, its output made clean."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from campaigns.reply import redact

__all__ = ["HookResult", "run_hook"]

LOOK_SECONDS = 0.05
GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""
MOST_OUTPUT_BYTES = 4_000
MOST_LINES = 10
OURS, HANDED_ON = "CAMPAIGNS_", "CAMPAIGNS_CONFIG"
"""Of our settings in the environment any may hold a password, or an address that is a secret."""


@dataclass(frozen=True, kw_only=True)
class HookResult:
    """How it ended: `error` is empty if well. `output`: its last lines, redacted, in one."""

    error: str = ""
    output: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


def run_hook(
    command: Sequence[str], *, directory: Path, within_seconds: float, stop: threading.Event
) -> HookResult:
    """Run it in `directory` until it ends; its process group is ended when its time is over or `stop` is set.

    It has no input, and of our settings in the environment only the name of the configuration file. What it
    leaves running in the background lives on, and should write its output to a place of its own.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own argument list, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=_environment(),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return HookResult(error=f"{command[0]} cannot be run: {_reason(error)}")
        error_text = _wait(process, within_seconds, stop)
        return HookResult(error=error_text and f"{command[0]} {error_text}", output=_last_lines(output))


def _wait(process: subprocess.Popen[bytes], within_seconds: float, stop: threading.Event) -> str:
    """Why it did not end well; empty if it did."""
    deadline = time.monotonic() + within_seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            _end(process)
            return f"was ended: it ran for {within_seconds:g} s"
        if stop.wait(LOOK_SECONDS):
            _end(process)
            return "was ended with the worker"
    status = process.returncode
    if status < 0:
        return f"was ended by {_name(-status)}"
    return f"ended with status {status}" if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and all that it started, as long as that stayed in its process group."""
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _name(number: int) -> str:
    """Real-time signals have none."""
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(OURS) or name == HANDED_ON
    }


def _last_lines(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - MOST_OUTPUT_BYTES))
    lines = output.read(MOST_OUTPUT_BYTES).decode(errors="replace").splitlines()[-MOST_LINES:]
    return " | ".join(clean for line in lines if (clean := redact(line)))


def _reason(error: Exception) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error)
