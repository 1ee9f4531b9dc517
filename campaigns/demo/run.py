"""`campaigns demo`: a campaign over two servers, one of which is killed on the way."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from sqlalchemy import Connection, text

from campaigns.campaign import Campaign
from campaigns.client import Client
from campaigns.database import create_database
from campaigns.demo.audit import Accepted, Audit, LedgerRow, Summary
from campaigns.demo.show import Show
from campaigns.demo.stage import Stage
from campaigns.settings import Settings
from campaigns.states import State
from campaigns.watch import View

__all__ = ["run_demo"]

NAME = "lighthouse"
VICTIM = "primary"
KILL_AT = 0.4
HELD_MAILS = 8
"""Mails that the victim leaves waiting in DATA when it dies; the others die wherever they happen to be."""
HELD_SECONDS = 1.0
AWAY_SECONDS = 1.5
POLL_SECONDS = 0.1
PACE_SECONDS = 0.03
PACED_RECIPIENTS = 5000
"""A longer campaign goes at full speed."""


def run_demo(recipients: int = 2000, as_json: bool = False, keep: bool = False) -> int:
    """Run it. The exit status: 0 if nobody was lost, nobody served twice, and every `sent` is true."""
    directory = Path(tempfile.mkdtemp(prefix="campaigns-demo-"))
    pace_seconds = PACE_SECONDS if recipients <= PACED_RECIPIENTS else 0.0
    show = Show(Console(), quiet=as_json)
    try:
        show.event(f"starting two mail servers, the broker and the workers in {directory}")
        with Stage(directory, pace_seconds=pace_seconds, flower=keep) as stage:
            summary = _Demo(stage, recipients, show).run()
            _print(summary, show, as_json=as_json)
            if keep:
                _wait(stage)
    except KeyboardInterrupt:
        return 130
    if summary.kept_the_promise and not keep:
        stage.remove()
    else:
        print(f"The files of this run are in {directory}", file=sys.stderr)
    return 0 if summary.kept_the_promise else 1


class _Demo:
    """One campaign: sent, bereft of its primary, followed to its end, and audited."""

    def __init__(self, stage: Stage, recipients: int, show: Show) -> None:
        self._stage, self._recipients, self._show = stage, recipients, show
        self._killed_at: float | None = None
        self._returned = False

    def run(self) -> Summary:
        with Client(self._stage.settings) as client, self._show:
            campaign = self._send(client)
            self._follow(client, campaign)
        return self._audit()

    def _send(self, client: Client) -> Campaign:
        campaign = client.create_campaign(
            NAME,
            sender="The Lighthouse <letter@lighthouse.example>",
            subject="{{ first_name }}, two lamps are better than one",
            html=self._stage.newsletter(),
            list_unsubscribe="https://lighthouse.example/unsubscribe",
        )
        report = campaign.recipients.add_csv(self._stage.write_recipients(self._recipients))
        campaign.send()
        self._show.event(f"sending to {report.added:,} recipients, 70 % over the primary")
        return campaign

    def _follow(self, client: Client, campaign: Campaign) -> None:
        deadline = time.monotonic() + 120 + self._recipients / 100
        while True:
            progress = campaign.status()
            self._show.update(View(progress=progress, servers=client.servers()))
            if progress.is_over or time.monotonic() > deadline:
                break
            self._act(progress.counts.get(State.SENT, 0))
            time.sleep(POLL_SECONDS)
        if self._killed_at is not None and not self._returned:
            self._bring_back()
        self._show.event(f"the campaign is {progress.status}")

    def _act(self, sent: int) -> None:
        if self._killed_at is None:
            if sent >= KILL_AT * self._recipients:
                self._kill()
        elif not self._returned and time.time() - self._killed_at >= AWAY_SECONDS:
            self._bring_back()

    def _kill(self) -> None:
        victim = self._stage.servers[VICTIM]
        victim.set("data", "stall", times=HELD_MAILS)
        deadline = time.monotonic() + HELD_SECONDS
        while (held := victim.stats().get("misbehaved.data.stall", 0)) < HELD_MAILS:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self._killed_at = time.time()
        victim.kill()
        self._show.event(f"the primary is dead: SIGKILL, {held} mails in mid-DATA", "bold red")

    def _bring_back(self) -> None:
        self._stage.start_server(VICTIM)
        self._returned = True
        self._show.event("the primary is back on its port", "bold green")

    def _audit(self) -> Summary:
        """The ledger first: what it calls `sent` must be in the records by then."""
        rows = _ledger_rows(self._stage.settings)
        return Audit(
            recipients=self._recipients,
            rows=rows,
            records={
                name: [Accepted(at=mail.at, recipient=mail.recipient) for mail in server.records()]
                for name, server in self._stage.servers.items()
            },
            victim=VICTIM,
            killed_at=self._killed_at,
        ).summary()


def _ledger_rows(settings: Settings) -> list[LedgerRow]:
    with _reading(settings) as connection:
        left: dict[int, set[str]] = {}
        for delivery_id, server in connection.execute(text("SELECT delivery_id, server FROM departure")):
            left.setdefault(delivery_id, set()).add(server)
        rows = connection.execute(
            text("SELECT r.id, r.email, d.state FROM recipient r JOIN delivery d ON d.id = r.id")
        )
        return [
            LedgerRow(email=email, state=state, rerouted_from=frozenset(left.get(delivery_id, ())))
            for delivery_id, email, state in rows
        ]


@contextmanager
def _reading(settings: Settings) -> Iterator[Connection]:
    database = create_database(settings.database)
    try:
        with database.read() as connection:
            yield connection
    finally:
        database.close()


def _print(summary: Summary, show: Show, *, as_json: bool) -> None:
    show.summary(summary)
    if as_json:
        print(json.dumps(asdict(summary)), flush=True)


def _wait(stage: Stage) -> None:
    """Until Ctrl-C. What is said goes to standard error: standard output may be JSON."""
    print(f"It goes on running. Flower: {stage.flower_address}", file=sys.stderr)
    print(
        f"Its campaigns: CAMPAIGNS_CONFIG={stage.directory}/campaigns.toml campaigns status\nCtrl-C ends it.",
        file=sys.stderr,
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("ending", file=sys.stderr)
