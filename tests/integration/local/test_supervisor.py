"""The supervisor with real child processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from campaigns.errors import AlreadyRunning, BrokerError, CampaignsError
from campaigns.local.child import bound_command
from campaigns.local.lock import InstanceLock
from campaigns.local.supervisor import Child, Supervisor

DEADLINE_SECONDS = 20.0

LONG = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('here', flush=True); time.sleep(600)",
]
NO_PYTHON = "could not be started: No such file or directory; starts again in "
SUPERVISOR = """
import asyncio, sys
from campaigns.local.supervisor import Child, Supervisor
child = Child(name="one", command=[sys.executable, "-c", "import time; time.sleep(600)"])
supervisor = Supervisor([[child]], say=lambda line: None, grace_seconds=5)
async def ready():
    while supervisor.groups[0][0].pid is None:
        await asyncio.sleep(0.01)
    print(supervisor.groups[0][0].pid, flush=True)
asyncio.run(supervisor.run(ready))
"""


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Watched:
    """A supervisor at work, and what it says."""

    def __init__(self, *groups: list[Child], grace_seconds: float = 5.0) -> None:
        self.said: list[str] = []
        self.supervisor = Supervisor(groups, say=self.said.append, grace_seconds=grace_seconds)
        self.task = asyncio.create_task(self.supervisor.run())

    async def here(self, index: int = 0) -> int:
        running = self.supervisor.groups[index][0]
        await until(lambda: any("here" in line for line in self.said), "the child said that it is here")
        assert running.pid is not None
        return running.pid


async def test_sigterm_ends_the_children_and_then_the_supervisor():
    watched = Watched([Child(name="one", command=LONG)])
    pid = await watched.here()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)
    assert gone(pid)


async def test_a_child_that_dies_is_started_again_after_a_pause():
    watched = Watched([Child(name="one", command=LONG)])
    first = await watched.here()
    os.kill(first, signal.SIGKILL)
    running = watched.supervisor.groups[0][0]
    await until(lambda: running.pid not in (None, first), "another process")
    assert any("ended by SIGKILL; starts again in 0.5 s" in line for line in watched.said)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_the_pause_grows_while_a_child_keeps_dying():
    watched = Watched([Child(name="one", command=[sys.executable, "-c", "raise SystemExit(3)"])])
    await until(lambda: any("with status 3; starts again in 1.0 s" in line for line in watched.said), "1 s")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_a_child_that_cannot_be_started_for_a_moment_is_started_later(monkeypatch: pytest.MonkeyPatch):
    watched = Watched([Child(name="one", command=LONG)])
    first = await watched.here()
    running = watched.supervisor.groups[0][0]
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/no/such/python")
        os.kill(first, signal.SIGKILL)
        await until(lambda: any(NO_PYTHON + "1.0 s" in line for line in watched.said), "that it could not")
    await until(lambda: running.pid not in (None, first), "another process")
    assert running.restarts == 2
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_the_first_start_is_tried_again_too(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/no/such/python")
        watched = Watched([Child(name="one", command=LONG)])
        await until(lambda: any(NO_PYTHON + "0.5 s" in line for line in watched.said), "that it could not")
    await watched.here()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_the_end_of_a_child_by_a_signal_without_a_name_is_one_like_any_other():
    watched = Watched([Child(name="one", command=LONG)])
    first = await watched.here()
    os.kill(first, signal.SIGRTMIN + 1)
    number = int(signal.SIGRTMIN) + 1
    text = f"ended by signal {number}; starts again in 0.5 s"
    await until(lambda: any(text in line for line in watched.said), text)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_that_a_child_is_given_up_is_told():
    watched = Watched([Child(name="one", command=["a command with \0 in it"])])
    text = "ERROR is not kept running any more: ValueError"
    await until(lambda: any(text in line for line in watched.said), text)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_a_child_that_does_not_end_in_its_grace_is_killed():
    watched = Watched([Child(name="one", command=STUBBORN)], grace_seconds=0.3)
    pid = await watched.here()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)
    assert gone(pid)


async def test_a_second_signal_cuts_the_grace_short():
    watched = Watched([Child(name="one", command=STUBBORN)], grace_seconds=600)
    pid = await watched.here()
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: any("ending" in line for line in watched.said), "it ends")
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)
    assert gone(pid)
    assert watched.said.count("ending now") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_neither_ctrl_c_nor_the_end_of_the_terminal_reaches_the_children(number: signal.Signals):
    watched = Watched([Child(name="one", command=LONG)])
    pid = await watched.here()
    os.kill(pid, number)
    os.kill(pid, 0)
    blocked = next(
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigBlk")
    )
    assert int(blocked, 16) & 1 << (number - 1)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_what_comes_later_waits_until_what_comes_first_serves():
    serves = asyncio.Event()

    async def ready() -> None:
        await serves.wait()

    watched = Watched([Child(name="broker", command=LONG, ready=ready)], [Child(name="worker", command=LONG)])
    await watched.here()
    worker = watched.supervisor.groups[1][0]
    assert worker.pid is None
    serves.set()
    await until(lambda: worker.pid is not None, "the worker runs")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(watched.task, DEADLINE_SECONDS)


async def test_a_child_that_cannot_serve_ends_everything_and_the_reason_comes_through():
    async def ready() -> None:
        raise BrokerError("it does not answer")

    watched = Watched([Child(name="worker", command=LONG)], [Child(name="broker", command=LONG, ready=ready)])
    with pytest.raises(BrokerError, match="does not answer"):
        await asyncio.wait_for(watched.task, DEADLINE_SECONDS)
    assert [group[0].pid for group in watched.supervisor.groups] == [None, None]


async def test_a_closed_terminal_ends_the_children_gracefully():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        watched = Watched([Child(name="one", command=LONG)])
        pid = await watched.here()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(watched.task, DEADLINE_SECONDS)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert gone(pid)


@pytest.mark.parametrize("name", ["HUP", "INT"])
async def test_a_signal_that_is_ignored_at_the_start_stays_ignored_and_sigterm_ends_it(name: str):
    ignoring = ["sh", "-c", f"trap '' {name}; exec \"$@\"", "sh", sys.executable, "-c", SUPERVISOR]
    supervisor = subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        os.kill(supervisor.pid, signal.Signals[f"SIG{name}"])
        with pytest.raises(subprocess.TimeoutExpired):
            supervisor.wait(0.5)
        assert not gone(pid)
        supervisor.terminate()
        assert supervisor.wait(DEADLINE_SECONDS) == 0
    assert gone(pid)


async def test_children_share_the_group_and_die_with_a_supervisor_that_is_killed():
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert os.getpgid(pid) == os.getpgid(supervisor.pid)
        supervisor.kill()
    await until(lambda: gone(pid), "the child died with its supervisor")


def test_a_child_whose_parent_is_gone_already_does_not_start():
    command = [sys.executable, "-c", "print('started')"]
    line = bound_command(command)
    line[line.index(str(os.getpid()))] = "1"
    result = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


def test_a_command_that_is_not_there_says_so():
    result = subprocess.run(
        bound_command(["no-such-command"]), capture_output=True, text=True, timeout=20, check=False
    )
    assert "cannot run no-such-command" in result.stderr


def test_a_second_instance_is_refused_and_told_who_holds_the_lock(tmp_path: Path):
    with InstanceLock(tmp_path), pytest.raises(AlreadyRunning, match=str(os.getpid())):
        InstanceLock(tmp_path).__enter__()


def test_a_lock_that_cannot_be_made_is_one_line_and_a_new_directory_is_private(tmp_path: Path) -> None:
    (tmp_path / "up.lock").mkdir()
    with pytest.raises(CampaignsError, match=r"up\.lock cannot be written: Is a directory"):
        InstanceLock(tmp_path).__enter__()
    with InstanceLock(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_the_lock_is_free_again_when_its_holder_has_ended(tmp_path: Path):
    with InstanceLock(tmp_path):
        pass
    with InstanceLock(tmp_path) as lock:
        assert "held" in repr(lock)
