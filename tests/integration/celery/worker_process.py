"""A real `celery worker`, as a child process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


def wait_until(
    condition: Callable[[], object], *, within_seconds: float = 20.0, what: Callable[[], str] | str = ""
) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        told = what if isinstance(what, str) else "" if time.monotonic() < deadline else what()
        assert time.monotonic() < deadline, told or "it did not come to pass in time"
        time.sleep(0.02)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What the ledger says of a queued delivery."""

    delivery_id: int
    campaign_name: str = "quick"
    stream: str = "promotional"
    server: str = "primary"


class WorkerProcess:
    """`celery -A ... worker` with the tiny app; its output in a file beside the notes."""

    def __init__(self, directory: Path, broker_url: str, *, name: str = "one", **environment: str) -> None:
        self.directory, self.name = directory, name
        self.log_file = directory / f"worker-{name}.log"
        self.environment = {
            **os.environ,
            "TINY_DIRECTORY": str(directory),
            "TINY_BROKER": broker_url,
            "PYTHONPATH": str(ROOT),
            **{f"TINY_{key.upper()}": value for key, value in environment.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, ready: bool = True) -> "WorkerProcess":
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.celery.tiny_app", "worker"]
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "-l", "INFO", "-n", f"{self.name}@%h", *options],
                env=self.environment, stdout=output, stderr=output, cwd=self.directory,
            )  # fmt: skip
        if ready:
            self.wait_for_log(" ready.")
        return self

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, text: str, *, within_seconds: float = 30.0) -> None:
        def said() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log
            return text in self.log

        wait_until(said, within_seconds=within_seconds, what=f"{text!r} is not in the log:\n{self.log}")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, *, within_seconds: float = 20.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end:\n{self.log}") from None

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Notes:
    """What the tasks wrote: each line a list of words."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "notes"

    def lines(self) -> list[list[str]]:
        if not self.file.exists():
            return []
        whole, _, _ = self.file.read_text().rpartition("\n")  # the last one may be half written
        return [line.split() for line in whole.splitlines()]

    def of(self, word: str) -> list[int]:
        return [int(line[1]) for line in self.lines() if line[0] == word]

    def words(self) -> list[str]:
        return [line[0] for line in self.lines()]
