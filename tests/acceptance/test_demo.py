"""`campaigns demo`, as a newcomer runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMMAND = [str(Path(sys.executable).parent / "campaigns"), "demo"]
KEYS = {
    "recipients", "sent", "failed", "accepted", "rerouted", "duplicates", "lost", "uncertain",
    "failover_seconds", "mails_per_second",
}  # fmt: skip


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.timeout(180)
def test_everybody_is_served_once_though_the_primary_is_killed(tmp_path: Path):
    result = subprocess.run(
        [*COMMAND, "--json", "--recipients", "400"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    summary = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert set(summary) >= KEYS
    assert summary["duplicates"] == summary["lost"] == summary["failed"] == 0
    assert summary["sent"] + summary["uncertain"] == summary["recipients"] == 400
    assert set(summary["accepted"]) == {"primary", "secondary"}
    assert summary["rerouted"] > 0
    assert 0 < summary["failover_seconds"] < 3
    assert not list(tmp_path.glob("campaigns-demo-*"))


@pytest.mark.timeout(120)
def test_nothing_outlives_a_demo_that_is_killed(tmp_path: Path):
    demo = subprocess.Popen(
        [*COMMAND, "--recipients", "5000"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with demo:
        assert demo.stdout is not None
        assert any("sending to" in line for line in demo.stdout)
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 7  # up, broker, control, a worker and a mail server for each of two
        demo.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left := [process for process in family if not gone(process)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)
