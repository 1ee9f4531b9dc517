"""A whole installation in a directory: configuration, database, broker, two mail servers, real workers.

Everything runs as processes of its own and can be killed, stopped and started again. What the mail servers
accepted is read from their files, which were synced before they answered.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from campaigns.database import create_database
from campaigns.demo.mail_record import AcceptedMail
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.ledger import Counts, EventRecord, Ledger, NewRecipient
from campaigns.local.broker import EmbeddedBroker
from campaigns.local.child import bound_command
from campaigns.settings import Settings, load_settings
from campaigns.states import State, Status

__all__ = ["Place", "addresses", "eventually"]

CONFIGURATION = """
database = "{database}"
broker = "{broker}"
{top}

[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{primary}"
{primary_lines}
weight = 70
connections = {connections}
{rate}

[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:{secondary}"
tls = "none"
weight = 30
connections = {connections}
{rate}

[delivery]
{delivery}

{tables}
"""

BODY = "Dear {{ name }},\n\n" + "this is a line of the letter that everybody gets once.\n" * 20


def eventually(
    question: Callable[[], object], *, seconds: float = 30.0, what: Callable[[], str] | str = ""
) -> None:
    """Ask until the answer is true. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, (
            f"not within {seconds} s: {what() if callable(what) else what or question}"
        )
        time.sleep(0.05)


def addresses(count: int, local_part: str = "r") -> list[str]:
    """Distinct addresses; a scripted server reads its misbehaviour from before the plus sign."""
    return [f"{local_part}+{number}@d{number % 7}.example.com" for number in range(count)]


class Place:
    """`with Place(directory, database_url) as place`."""

    def __init__(
        self,
        directory: Path,
        database: str | None = None,
        *,
        connections: int = 10,
        delivery: str = "",
        rate: str = "",
        top: str = "",
        tables: str = "",
        body: str = BODY,
        server_options: Sequence[str] = (),
        broker_url: str = "embedded",
        primary_lines: str = 'tls = "none"',
        worker_environ: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.primary = SmtpServerProcess(directory / "primary.jsonl", name="primary", options=server_options)
        self.secondary = SmtpServerProcess(
            directory / "secondary.jsonl", name="secondary", options=server_options
        )
        self._database = database or f"sqlite:///{directory}/campaigns.db"
        self._connections = connections
        self._delivery = delivery
        self._rate = rate
        self._top, self._tables = top, tables
        self._body = body
        self._broker_url = broker_url
        self._primary_lines = primary_lines
        self._worker_environ = dict(worker_environ or {})
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.primary.start()
        self.secondary.start()
        self.config = self.directory / "campaigns.toml"
        self.config.write_text(
            CONFIGURATION.format(
                database=self._database,
                broker=self._broker_url,
                primary=self.port_of(self.primary),
                secondary=self.port_of(self.secondary),
                primary_lines=self._primary_lines,
                connections=self._connections,
                delivery=self._delivery,
                rate=self._rate,
                top=self._top,
                tables=self._tables,
            )
        )
        self.settings: Settings = load_settings(self.config, {})
        self.broker = EmbeddedBroker.of(self.settings)
        if self.settings.embedded:
            self.broker.start()
        self.database = create_database(self.settings.database)
        self.database_file = self.database.engine.url.database or ""
        self.database.upgrade()
        self.ledger = Ledger(self.database)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            self.kill(worker)
        self.broker.kill()
        self.broker.remove_socket()
        self.primary.kill()
        self.secondary.kill()
        self.database.close()

    def port_of(self, server: SmtpServerProcess) -> int:
        """Where the workers find this mail server."""
        return server.port

    def start_worker(
        self, *servers: str, log_name: str = "", program: Sequence[str] = ("celery",)
    ) -> subprocess.Popen[bytes]:
        """A real `celery worker` on the queues of these servers; returns at once.

        `program`: a module that does as Celery's own, and its first arguments.
        """
        queues = ",".join(f"smtp.{server}" for server in servers)
        command = [sys.executable, "-m", *program, "-A", "workers", "worker", "-Q", queues, "-l", "INFO"]
        command += ["-n", f"{log_name or '-'.join(servers)}-{len(self.workers)}@here", "--without-mingle"]
        log = self.directory / f"worker-{len(self.workers)}-{'-'.join(servers)}.log"
        environ = {**os.environ, "CAMPAIGNS_CONFIG": str(self.config), **self._worker_environ}
        with log.open("wb") as output:
            worker = subprocess.Popen(
                bound_command(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=self.directory,
            )
        self.workers.append(worker)
        return worker

    def start_workers(self) -> None:
        """One worker for each server, and wait until both are at work."""
        self.start_worker("primary")
        self.start_worker("secondary")
        self.wait_for_workers(2)

    def wait_for_workers(self, count: int) -> None:
        eventually(
            lambda: len(self.ledger.live_workers(10)) >= count,
            seconds=60.0,
            what=lambda: f"{count} workers\n{self.logs()}",
        )

    def kill(self, worker: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        if worker.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
                worker.send_signal(number)
            worker.wait(60)

    def campaign(self, name: str, emails: Sequence[str], *, stream: str = "promotional") -> str:
        """A campaign of these recipients, not sent yet."""
        campaign = self.ledger.create_campaign(
            name, sender="News <news@example.com>", subject="Hi {{ name }}", text=self._body, stream=stream
        )
        for start in range(0, len(emails), 1000):
            rows = [
                NewRecipient(
                    email=email, dedupe_key=email, domain=email.rpartition("@")[2], fields={"name": "Ada"}
                )
                for email in emails[start : start + 1000]
            ]
            self.ledger.add_recipients(campaign.id, rows)
        return name

    def send(self, name: str, emails: Sequence[str]) -> str:
        self.campaign(name, emails)
        self.ledger.send(name)
        return name

    def counts(self, name: str) -> Counts:
        return self.ledger.counts(name)

    def count(self, name: str, state: State) -> int:
        return self.counts(name).states[state]

    def accepted(self) -> list[AcceptedMail]:
        return [*self.primary.records(), *self.secondary.records()]

    def accepted_count(self) -> int:
        return len(self.accepted())

    def wait_until_finished(self, name: str, *, seconds: float = 90.0) -> Counts:
        eventually(
            lambda: self.counts(name).status is Status.FINISHED,
            seconds=seconds,
            what=lambda: f"{name} finished: {self.counts(name)}\n{self.logs()}",
        )
        return self.counts(name)

    def breaker_events(self) -> list[EventRecord]:
        return [event for event in self.ledger.events() if event.kind == "breaker"]

    def logs(self, lines: int = 40) -> str:
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted(self.directory.glob("worker-*.log"))
        )

    def judge(self, name: str, emails: Sequence[str]) -> Counts:
        """Hold the servers' records against the ledger; returns the counts.

        Nobody lost, nobody twice, every `sent` was accepted, what was accepted is `sent` or `uncertain`,
        and the counters agree with the rows.
        """
        eventually(lambda: self._adds_up(name), seconds=10, what=lambda: self._told(name))
        counts = self.ledger.counts(name)
        assert counts.total == len(emails)
        assert sum(counts.states.values()) == counts.total
        states = {delivery.email: delivery.state for delivery in self.ledger.deliveries(name)}
        assert set(states) == set(emails)
        times = Counter(mail.recipient for mail in self.accepted() if mail.recipient in states)
        assert {email: n for email, n in times.items() if n > 1} == {}, "served twice"
        for email, state in states.items():
            if state is State.SENT:
                assert times[email] == 1, f"{email} is sent, and no server accepted it"
            else:
                assert times[email] == 0 or state is State.UNCERTAIN, f"{email} was accepted and is {state}"
        return counts

    def _adds_up(self, name: str) -> bool:
        """Whether the kept counts are those of the rows; work may go on between the two looks."""
        counts, scan = self.ledger.counts(name), self.ledger.scan_counts(name)
        return (counts.states, counts.total) == (scan.states, scan.total)

    def _told(self, name: str) -> str:
        return f"kept: {self.ledger.counts(name)}\nin the rows: {self.ledger.scan_counts(name)}"

    @contextlib.contextmanager
    def stopped(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """SIGSTOP for a while, at a moment when the process holds no lock of the database.

        On SQLite a process that is stopped within a transaction stops everybody until it goes on or ends.
        """
        process.send_signal(signal.SIGSTOP)
        while not self._can_write():
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def _can_write(self) -> bool:
        if self.database.dialect != "sqlite":
            return True
        time.sleep(0.05)
        with contextlib.closing(sqlite3.connect(self.database_file, timeout=0.5)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.rollback()
            return True
