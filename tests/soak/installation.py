"""The installation that is soaked: a trial with three workers in slots of their own, and a place to write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from sqlalchemy import make_url

from campaigns.demo.smtp_process import SmtpServerProcess
from tests.faults.proxy import BadNetwork
from tests.faults.trial import QUICK_BREAKER, ROOT, Trial
from tests.postgres import PostgresServer
from tests.soak.doubts import DOT_SECONDS
from tests.soak.schedule import WORKERS

__all__ = ["Installation", "Slot"]

DELIVERY = (
    "lease_seconds = 6\nconnect_seconds = 3\ncommand_seconds = 5\nbody_seconds = 8"
    f'\ndot_seconds = {DOT_SECONDS}\nretry_after = ["1s"]\nmax_crashes = 1000'
)
USUAL_SECONDS = 0.1
"""How long a server thinks at the dot, so that there are always mails at theirs."""
END_SECONDS = 60.0
AGAIN_SECONDS = 1.0


class Installation(Trial):
    """`with Installation(directory) as installation`; with `postgres`, its database is there.

    `broken` names a defect that its workers are given (`tests.soak.broken_worker`).
    """

    def __init__(
        self, directory: Path, *, postgres: PostgresServer | None = None, broken: str | None = None
    ) -> None:
        self.postgres = postgres
        self.stack = contextlib.ExitStack()
        self.database_network: BadNetwork | None = None
        environ = {"PYTHONPATH": str(ROOT)}
        database = None
        if postgres is not None:
            database = postgres.url(postgres.create_database())
            self.database_network = self.stack.enter_context(BadNetwork(postgres.port))
            url = make_url(database).set(port=self.database_network.port)
            environ["CAMPAIGNS_DATABASE"] = url.render_as_string(hide_password=False)
        super().__init__(
            directory,
            database,
            network=True,
            delivery=DELIVERY,
            tables=QUICK_BREAKER,
            worker_environ=environ,
        )
        self.program = ("tests.soak.broken_worker", broken) if broken else ("celery",)
        self.starting = threading.Lock()
        self.slots = {name: Slot(self, servers) for name, servers in WORKERS.items()}

    def __enter__(self) -> Self:
        super().__enter__()
        for server in self.servers.values():
            self.behave(server)
        for slot in self.slots.values():
            slot.start()
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self.stack.close()

    @property
    def servers(self) -> dict[str, SmtpServerProcess]:
        return {"primary": self.primary, "secondary": self.secondary}

    def behave(self, server: SmtpServerProcess) -> None:
        """As usual: thinking for a moment at each dot, and otherwise well."""
        server.clear()
        server.set("dot", "delay", seconds=USUAL_SECONDS)


class Slot:
    """One worker after the other, for the same servers. `ended`: those that ended by themselves."""

    def __init__(self, installation: Installation, servers: tuple[str, ...]) -> None:
        self._installation = installation
        self._servers = servers
        self._process: subprocess.Popen[bytes] | None = None
        self.ended: list[tuple[float, int]] = []

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, oddities: str | None = None) -> None:
        """A thread that lives on must do this: with it the worker ends."""
        installation = self._installation
        program = installation.program if oddities is None else ("tests.faults.odd_worker", oddities)
        with installation.starting:
            self._process = installation.start_worker(*self._servers, program=program)

    def look(self) -> None:
        """Start it again if it ended by itself, as a supervisor would."""
        status = self._running.poll()
        if status is not None:
            self.ended.append((time.time(), status))
            time.sleep(AGAIN_SECONDS)
            self.start()

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()

    def end(self) -> None:
        """SIGTERM; what is at its dot gets its time."""
        self._running.terminate()
        try:
            self._running.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"worker {self.pid} did not end within {END_SECONDS:g} s") from None

    def wait(self, seconds: float, *, until: Callable[[], bool]) -> bool:
        """Whether it came about in time."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def is_dead(self) -> bool:
        return self._running.poll() is not None

    def is_asleep(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def wake(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[Any]:
        with self._installation.stopped(self._running):
            yield


def send_signal(process_id: int | None, number: signal.Signals) -> None:
    assert process_id is not None
    os.kill(process_id, number)
