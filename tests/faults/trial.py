"""An installation on trial: what is done to it is noted, and at its end the checker judges everything."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from re import findall
from typing import Any, Self

import redis
from sqlalchemy import text

from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.ledger import Counts
from campaigns.states import State
from tests.acceptance.place import BODY, Place, eventually
from tests.faults.checker import Violation, judge
from tests.faults.history import DeliverySeen, Expected, FaultLog, History, collect, watch
from tests.faults.proxy import BadNetwork

__all__ = ["PATIENCE_SECONDS", "Trial", "Trials", "patiently", "redis_dump"]

Trials = Callable[..., "Trial"]
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 240.0
"""How long the tests wait for anything: on a busy machine it may come late, and that is no fault."""
FINAL_SECONDS = 120.0
"""How long after the healing somebody may be alive, unless a test says less."""
QUICK = (
    'lease_seconds = 3\nconnect_seconds = 2\ncommand_seconds = 3\nbody_seconds = 5\nretry_after = ["1s"]'
    "\nmax_crashes = 100"
)
QUICK_BREAKER = (
    "[breaker]\nfailback_seconds = 0.5\ncool_down_seconds = 0.5\nlongest_cool_down_seconds = 2"
    "\nslow_seconds = 2"
)


class Trial(Place):
    """`with Trial(directory, database_url) as trial`: a Place whose ledger is watched and whose mail is kept.

    `network` puts the mail servers behind bad networks of their own, `networks["primary"]` and so on;
    `primary_options` are further options of the primary's own process.
    """

    def __init__(
        self,
        directory: Path,
        database: str | None = None,
        *,
        network: bool = False,
        primary_options: Sequence[str] = (),
        **options: Any,
    ) -> None:
        defaults: dict[str, Any] = {"delivery": QUICK, "tables": QUICK_BREAKER}
        options = {**defaults, **options}
        options["server_options"] = ("--data", *options.get("server_options", ()))
        super().__init__(directory, database, **options)
        self.primary = SmtpServerProcess(
            directory / "primary.jsonl",
            name="primary",
            options=(*options["server_options"], *primary_options),
        )
        self.faults = FaultLog()
        self.networks: dict[str, BadNetwork] = {}
        self._has_network = network
        self._exits = contextlib.ExitStack()
        self._emails: dict[str, list[str]] = {}
        self._resends = 'on_uncertain = "resend"' in options["delivery"]

    def __enter__(self) -> Self:
        super().__enter__()
        watch(self.database)
        return self

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        self._exits.close()

    def port_of(self, server: SmtpServerProcess) -> int:
        if not self._has_network:
            return server.port
        self.networks[server.name] = self._exits.enter_context(BadNetwork(server.port))
        return self.networks[server.name].port

    def wait_for_workers(self, count: int) -> None:
        patiently(
            lambda: len(self.ledger.live_workers(10)) >= count, what=lambda: f"{count} workers\n{self.logs()}"
        )

    def wait_until_finished(self, name: str, *, seconds: float = PATIENCE_SECONDS) -> Counts:
        return super().wait_until_finished(name, seconds=seconds)

    def campaign(self, name: str, emails: Sequence[str], *, stream: str = "promotional") -> str:
        self._emails[name] = list(emails)
        return super().campaign(name, emails, stream=stream)

    def odd_worker(self, *servers: str, oddities: str) -> subprocess.Popen[bytes]:
        """A worker with these oddities (`tests.faults.odd_worker`); returns at once."""
        program = ("tests.faults.odd_worker", oddities)
        before = self._worker_environ
        self._worker_environ = {**before, "PYTHONPATH": str(ROOT)}
        try:
            return self.start_worker(*servers, program=program)
        finally:
            self._worker_environ = before

    def wait_for_death(self, worker: subprocess.Popen[bytes], *, seconds: float = PATIENCE_SECONDS) -> None:
        eventually(lambda: worker.poll() is not None, seconds=seconds, what=self.logs)
        assert worker.returncode == -signal.SIGKILL, f"it ended with {worker.returncode}\n{self.logs()}"

    def wait_for_sleep(self, worker: subprocess.Popen[bytes], *, seconds: float = PATIENCE_SECONDS) -> None:
        stat = Path(f"/proc/{worker.pid}/stat")
        eventually(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", seconds=seconds, what=self.logs
        )

    def doomed_by(self, worker: subprocess.Popen[bytes]) -> int:
        """Whose attempt it was at which this odd worker died or fell asleep, as it wrote down before."""
        return int((self.directory / f"doomed-{worker.pid}").read_text())

    def at_its_dot(self, worker: subprocess.Popen[bytes]) -> int:
        """How many mails of this worker are past their commit point and have no outcome."""
        sql = text("SELECT count(*) FROM delivery WHERE state = 'committing' AND owner LIKE :owner")
        with self.database.read() as connection:
            return int(connection.execute(sql, {"owner": f"%-{worker.pid}-%"}).scalar_one())

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL, noted with as many uncertain mails as it can have left."""
        worker.kill()
        worker.wait()
        self.faults.note("worker killed", may_leave_uncertain=self.at_its_dot(worker))

    @contextlib.contextmanager
    def outage(
        self, kind: str, target: str = "", *, may_leave_uncertain: int | Callable[[], int] = 0
    ) -> Iterator[None]:
        """Whatever is done in this block is a fault, healed at its end."""
        number = may_leave_uncertain if isinstance(may_leave_uncertain, int) else may_leave_uncertain()
        with self.faults.injected(kind, target, may_leave_uncertain=number):
            yield

    @contextlib.contextmanager
    def outage_on_the_way(self, campaign: str, kind: str, target: str) -> Iterator[None]:
        """As `outage`, of which the campaign must have met something: it is not over when the fault is."""
        with self.outage(kind, target):
            assert self.count(campaign, State.SENT) < len(self._emails[campaign])
            yield
            sent = self.count(campaign, State.SENT)
            assert sent < len(self._emails[campaign]), f"the campaign was over before the fault ({kind}) was"

    def history(self, *, final_within_seconds: float = FINAL_SECONDS, **options: Any) -> History:
        return collect(
            self.database,
            self.accepted(),
            self.faults.faults,
            **{
                "emails": self._emails,
                "expected": self.expected if self._body == BODY else None,
                "dumps": self.dumps(),
                "final_within_seconds": final_within_seconds,
                "resends": self._resends,
                "rules": self.settings.delivery,
                **options,
            },
        )

    def verdict(self, *names: str, seconds: float = PATIENCE_SECONDS, **options: Any) -> History:
        """Wait until these campaigns (all of them, if none is named) are finished, and judge everything."""
        for name in names or tuple(self._emails):
            self.wait_until_finished(name, seconds=seconds)
        history = self.history(**options)
        violations = judge(history)
        assert not violations, _told(history, violations, self.logs())
        return history

    def states(self, name: str) -> Mapping[State, int]:
        return {state: count for state, count in self.counts(name).states.items() if count}

    def expected(self, delivery: DeliverySeen) -> Expected:
        """What a mail of this place's own letter must look like."""
        return Expected(
            envelope_sender="news@example.com",
            envelope_recipient=delivery.email,
            headers={"From": "News <news@example.com>", "To": delivery.email, "Subject": "Hi Ada"},
            text=BODY.replace("{{ name }}", "Ada"),
        )

    def dumps(self) -> dict[str, str]:
        """All that others may look at."""
        dumps = {path.name: path.read_text(errors="replace") for path in self.directory.glob("*.log")}
        dumps["events"] = repr(self.ledger.events())
        with self.database.read() as connection:
            replies = connection.execute(text("SELECT reply FROM attempt UNION SELECT reply FROM delivery"))
            dumps["replies"] = "\n".join(str(row.reply) for row in replies)
        with contextlib.suppress(redis.RedisError), self.broker_client() as client:
            dumps["redis"] = redis_dump(client)
        return dumps

    def broker_client(self) -> redis.Redis:
        url = self._broker_url
        if url == "embedded":
            return redis.Redis(
                unix_socket_path=str(self.settings.broker_socket), single_connection_client=True
            )
        return redis.Redis.from_url(url, single_connection_client=True)


def patiently(
    question: Callable[[], object],
    *,
    seconds: float = PATIENCE_SECONDS,
    what: Callable[[], str] | str = "",
) -> None:
    """Ask until the answer is true. Raises AssertionError after `seconds`."""
    eventually(question, seconds=seconds, what=what)


def redis_dump(client: redis.Redis) -> str:
    """All keys and values as text, and once more what is Base64 in them."""
    found = []
    for number in range(4):
        client.select(number)
        found += [repr((key, _value(client, key))) for key in client.scan_iter(count=1000)]
    whole = "\n".join(found)
    decoded = [b64decode(word + "==", validate=False) for word in findall(r"[A-Za-z0-9+/]{24,}", whole)]
    return whole + repr(decoded)


def _value(client: redis.Redis, key: bytes) -> object:
    read = {
        b"list": lambda: client.lrange(key, 0, -1),
        b"hash": lambda: client.hgetall(key),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"string": lambda: client.get(key),
    }
    return read.get(client.type(key), lambda: None)()


def _told(history: History, violations: Sequence[Violation], logs: str) -> str:
    lines = [f"{len(violations)} violations", *(str(violation) for violation in violations[:20])]
    lines += [f"fault: {fault}" for fault in history.faults]
    for number in sorted({v.delivery_id for v in violations if v.delivery_id is not None})[:5]:
        lines += [f"delivery {number}:", history.story(number)]
    return "\n".join([*lines, logs])
