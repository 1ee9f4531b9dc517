"""What the benchmarks run on: two mail servers of their own, a configuration, and `campaigns up`."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from campaigns.client import connect
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.settings import load_settings
from campaigns.states import FINAL, State

CONFIGURATION = """
database = "{database}"
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{primary}"
tls = "none"
weight = 70
connections = {connections}
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:{secondary}"
tls = "none"
weight = 30
connections = {connections}
"""
TEXT = "Dear {{ name }},\n\n" + "this is a line of the letter that everybody gets once.\n" * 50
END_SECONDS = 90.0


class Installation:
    """`with Installation(directory, ...) as installation`: everything runs; at the end, nothing does."""

    def __init__(self, directory: Path, *, database: str = "", processes: int, connections: int) -> None:
        self.directory = directory
        self.primary = SmtpServerProcess(directory / "primary.jsonl", name="primary")
        self.secondary = SmtpServerProcess(directory / "secondary.jsonl", name="secondary")
        self._database = database or f"sqlite:///{directory}/campaigns.db"
        self._processes, self._connections = processes, connections

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.primary)
            stack.enter_context(self.secondary)
            self.config = self._write_configuration()
            self.client = stack.enter_context(connect(load_settings(self.config, {})))
            self.up = self._start_up()
            stack.callback(self._end)
            self.client.upgrade_database()
            wait(self._is_complete, 60, "the workers did not start")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write_list(self, name: str, count: int) -> Path:
        """A list of `count` recipients; no address is in two lists."""
        path = self.directory / f"{name}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["email", "name"])
            writer.writerows(
                (f"{name}.{number}@d{number % 50}.example.com", f"Ada {number}") for number in range(count)
            )
        return path

    def add_campaign(self, name: str, count: int) -> None:
        """A draft with `count` recipients."""
        campaign = self.client.create_campaign(
            name, sender="News <news@example.com>", subject="Hi {{ name }}", text=TEXT
        )
        campaign.recipients.add_csv(self.write_list(name, count))

    def judged(self, campaigns: list[str]) -> dict[str, object]:
        """The servers' records against the ledger, for these campaigns."""
        counts = [self.client.ledger.counts(name) for name in campaigns]
        states = sum((Counter(count.states) for count in counts), Counter[State]())
        records = {"primary": self.primary.records(), "secondary": self.secondary.records()}
        times = Counter(mail.recipient for mails in records.values() for mail in mails)
        rows = [row for name in campaigns for row in self.client.ledger.deliveries(name)]
        return {
            "recipients": sum(count.total for count in counts),
            "accepted": {name: len(mails) for name, mails in records.items()},
            "sent": states[State.SENT],
            "failed": states[State.FAILED],
            "uncertain": states[State.UNCERTAIN],
            "rerouted": sum(server.rerouted for count in counts for server in count.servers.values()),
            "lost": sum(count.total for count in counts) - sum(states[state] for state in FINAL),
            "uncertain_but_accepted": sum(
                1 for row in rows if row.state is State.UNCERTAIN and times[row.email]
            ),
            "sent_but_not_accepted": sum(
                1 for row in rows if row.state is State.SENT and not times[row.email]
            ),
            "duplicates": sum(1 for count in times.values() if count > 1),
        }

    def _write_configuration(self) -> Path:
        path = self.directory / "campaigns.toml"
        path.write_text(
            CONFIGURATION.format(
                database=self._database,
                primary=self.primary.port,
                secondary=self.secondary.port,
                connections=self._connections,
            )
        )
        return path

    def _start_up(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "campaigns", "up", "--processes", str(self._processes)]
        with (self.directory / "up.log").open("wb") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "CAMPAIGNS_CONFIG": str(self.config)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _is_complete(self) -> bool:
        return len(self.client.ledger.live_workers(10)) >= 2 * self._processes + 1

    def _end(self) -> None:
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(END_SECONDS)


@contextlib.contextmanager
def fresh_database(*, postgresql: bool) -> Iterator[str]:
    """The URL of a fresh PostgreSQL database; empty for SQLite."""
    if not postgresql:
        yield ""
        return
    from tests.postgres import postgres_server  # noqa: PLC0415 - only the development checkout has it

    with postgres_server() as server:
        yield server.url(server.create_database())


def wait(question: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            raise SystemExit(complaint)
        time.sleep(0.1)
