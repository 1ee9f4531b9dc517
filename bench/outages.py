"""Five ways in which a primary mail server fails in the middle of a campaign, one after the other.

    python -m bench.outages [--fault NAME] [--recipients 50000] [--processes 2] [--postgresql]

Each fault has an installation of its own: `campaigns up` with two workers for each of two servers, which sync
each mail to disk before they answer, and mail that flows without a pause from before the fault until the
primary has its usual share again. The fault ends a few seconds after the primary's queue was moved. The
figures come from the servers' records and the ledger's events. Prints two tables in Markdown, then JSON. The
exit status is 1 if anybody was lost or served twice.

    refusing     the process is killed: connections are refused
    blackhole    the process is suspended: the kernel takes connections, and nobody speaks on them
    421          421 4.3.2 to whatever it is asked, and it hangs up
    data         451 4.3.0 to every DATA
    slow         every reply takes 20 s
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.installation import Installation, fresh_database, wait
from bench.outage_figures import (
    BEFORE_SECONDS,
    Change,
    Figures,
    Outage,
    Verdict,
    figures,
    first_change,
    tables,
    whole_at,
)
from bench.traffic import Traffic
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.settings import Settings

LOOK_SECONDS = 0.1
WARM_UP_SECONDS = BEFORE_SECONDS + 3.0
AFTER_THE_MOVE_SECONDS = 5.0
LONGEST_FAULT_SECONDS = 60.0
LONGEST_FAILBACK_SECONDS = 150.0
AFTERWARDS_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How it begins and ends, and within how long the first mail should be through the secondary."""

    begin: Callable[[SmtpServerProcess], object]
    end: Callable[[SmtpServerProcess], object]
    target_seconds: Callable[[Settings], float]


def shortest_deadline(settings: Settings) -> float:
    delivery = settings.delivery
    return min(delivery.connect_seconds, delivery.command_seconds, settings.breaker.slow_seconds)


FAULTS = {
    "refusing": Fault(
        begin=SmtpServerProcess.kill, end=SmtpServerProcess.start, target_seconds=lambda settings: 1.0
    ),
    "blackhole": Fault(
        begin=SmtpServerProcess.suspend,
        end=SmtpServerProcess.resume,
        target_seconds=lambda settings: shortest_deadline(settings) + 1.0,
    ),
    "421": Fault(
        begin=lambda server: server.set("every", "reply", reply="421 4.3.2 Service shutting down"),
        end=SmtpServerProcess.clear,
        target_seconds=lambda settings: 1.0,
    ),
    "data": Fault(
        begin=lambda server: server.set("data", "reply", reply="451 4.3.0 Queue file write error"),
        end=SmtpServerProcess.clear,
        target_seconds=lambda settings: 2.0,
    ),
    "slow": Fault(
        begin=lambda server: server.set("every", "delay", seconds=20.0),
        end=SmtpServerProcess.clear,
        target_seconds=lambda settings: 30.0,
    ),
}


def main() -> int:
    options = parse()
    results = []
    for name in [options.fault] if options.fault else FAULTS:
        results.append(run(name, options))
        print(f"{name}: {json.dumps(results[-1].verdict)}", file=sys.stderr, flush=True)
    print(tables([(result.figures, result.verdict_of_mail) for result in results]))
    print()
    print(json.dumps([asdict(result.figures) | result.verdict for result in results], indent=2))
    return 1 if any(result.broke_the_promise for result in results) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, help="left out: all of them")
    parser.add_argument("--recipients", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--postgresql", action="store_true")
    return parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class Result:
    figures: Figures
    verdict: dict[str, Any]

    @property
    def verdict_of_mail(self) -> Verdict:
        return Verdict(**{name: self.verdict[name] for name in Verdict.__dataclass_fields__})

    @property
    def broke_the_promise(self) -> bool:
        return any(self.verdict[name] for name in ("lost", "duplicates", "sent_but_not_accepted"))


def run(name: str, options: argparse.Namespace) -> Result:
    """One fault, from a fresh installation to the last mail."""
    with (
        tempfile.TemporaryDirectory(prefix="campaigns-bench-") as folder,
        fresh_database(postgresql=options.postgresql) as url,
        Installation(
            Path(folder), database=url, processes=options.processes, connections=options.connections
        ) as installation,
        Traffic(installation, options.recipients) as traffic,
    ):
        watch = Watch(installation)
        wait(watch.has_mail, 60, "no mail went out")
        time.sleep(WARM_UP_SECONDS)
        watch.strike(FAULTS[name])
        watch.until_back()
        time.sleep(AFTERWARDS_SECONDS)
        traffic.end()
        verdict = installation.judged(traffic.names) | {
            "at_the_dot": watch.at_the_dot,
            "queued_at_fault": watch.queued_at_fault,
        }
        target_seconds = FAULTS[name].target_seconds(installation.client.settings)
        return Result(figures=figures(watch.outage(name, target_seconds)), verdict=verdict)


class Watch:
    """Begins and ends a fault of the primary, and writes down what becomes of it."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._ledger = installation.client.ledger
        self._fault_at = self._returned_at = 0.0
        self._emptied_at: float | None = None
        self._departed_before: set[int] = set()
        self.at_the_dot = 0
        self.queued_at_fault: dict[str, int] = {}

    def has_mail(self) -> bool:
        return bool(self._installation.primary.record.stat().st_size)

    def strike(self, fault: Fault) -> None:
        """The fault, from its beginning to its end."""
        self._departed_before = {delivery for delivery, _ in self._departed()}
        self.queued_at_fault = self._ledger.queued_counts()
        primary = self._installation.primary
        self._fault_at = time.time()
        fault.begin(primary)
        self.at_the_dot = self._count_at_the_dot()
        self._until(self._is_emptied, LONGEST_FAULT_SECONDS)
        time.sleep(AFTER_THE_MOVE_SECONDS)
        fault.end(primary)
        self._returned_at = time.time()

    def until_back(self) -> None:
        """Until the primary has its usual share again, if that is seen."""
        self._until(self._is_whole, LONGEST_FAILBACK_SECONDS)

    def outage(self, name: str, target_seconds: float) -> Outage:
        primary, secondary = self._installation.primary, self._installation.secondary
        return Outage(
            name=name,
            target_seconds=target_seconds,
            fault_at=self._fault_at,
            returned_at=self._returned_at,
            emptied_at=self._emptied_at,
            changes=self._changes(),
            primary=accepted(primary),
            secondary=accepted(secondary),
            moved_off=self._moved_off(),
        )

    def _until(self, question: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not question() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _is_whole(self) -> bool:
        return whole_at(self._changes(), self._returned_at) is not None

    def _is_emptied(self) -> bool:
        opened_at = first_change(self._changes(), "breaker", "open", self._fault_at)
        if opened_at is not None and not self._ledger.queued_counts().get("primary"):
            self._emptied_at = time.time()
        return self._emptied_at is not None

    def _changes(self) -> list[Change]:
        events = self._ledger.events("primary")
        return [
            (event.at, event.kind, event.to_state or "") for event in events if event.at >= self._fault_at
        ]

    def _count_at_the_dot(self) -> int:
        sql = text("SELECT count(*) FROM delivery WHERE state = 'committing' AND server = 'primary'")
        with self._ledger.database.read() as connection:
            return int(connection.execute(sql).scalar_one())

    def _moved_off(self) -> frozenset[str]:
        return frozenset(
            email for delivery, email in self._departed() if delivery not in self._departed_before
        )

    def _departed(self) -> list[tuple[int, str]]:
        sql = text(
            "SELECT r.id, r.email FROM departure AS d JOIN recipient AS r ON r.id = d.delivery_id"
            " WHERE d.server = 'primary'"
        )
        with self._ledger.database.read() as connection:
            return [(delivery, email) for delivery, email in connection.execute(sql)]


def accepted(server: SmtpServerProcess) -> list[tuple[float, str]]:
    return [(mail.at, mail.recipient) for mail in server.records()]


if __name__ == "__main__":
    sys.exit(main())
