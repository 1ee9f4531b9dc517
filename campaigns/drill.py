"""Rehearses a failover: a server counts as dead for a while, and seed addresses show what their mail does.

Unless the drill is live, only its own mail finds the server dead. The declaration is announced some seconds
ahead and has an end, so that every process begins and ends at the same moment, also when the one that
rehearses is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parseaddr
from itertools import chain, count, cycle, islice
from pathlib import Path
from typing import Any

from campaigns.address import Address, normalise
from campaigns.csv_file import BadRow, read_csv
from campaigns.drill_findings import Findings
from campaigns.errors import CampaignExists, DrillRefused, InvalidAddress, InvalidRecipients
from campaigns.fleet import Fleet
from campaigns.ledger import CampaignRecord, DrillRecord, Ledger, NewRecipient
from campaigns.message import CampaignContent, compile_campaign
from campaigns.settings import BUILT_IN_STREAMS

__all__ = ["MOST_SEEDS", "DrillPlan", "Rehearsal", "read_seeds"]

MOST_SEEDS = 100
"""More is rather a list of customers, given by mistake."""
MOST_SECONDS = 600.0
"""A server that is declared dead is so until the end, whatever becomes of who declared it."""
NOTICE_SECONDS = 3.0
"""Between the announcement and the death: every worker looks for drills every 2 s."""
RETURN_SECONDS, LIVE_RETURN_SECONDS = 30.0, 180.0
"""How long mail may take to go through the server again; after a live drill its breaker rests for a while."""
RETURN_TRY_SECONDS = 10.0
MOST_RETURN_TRIES = 5
LOOK_SECONDS = 0.1
STREAMS = ("transactional", *BUILT_IN_STREAMS)
"""Transactional mail overtakes a campaign that runs: its backlog is no part of the switch."""

TEXT = """\
This is a drill. Nothing has failed.

The mail system rehearses what it does when its server {server} fails: {what}

You get this mail because your address is in the list of seed addresses. You may delete it.
"""
BY_THE_OPERATOR = "it was broken off by the operator"
FAILOVER = "this mail had to find its way through another server."
RETURN = "this mail was to go through that server again."


@dataclass(frozen=True, kw_only=True)
class DrillPlan:
    """What is to be rehearsed. `is_live`: the server counts as dead for all mail, not the drill's alone."""

    server: str
    seeds: Sequence[Address] = field(repr=False)
    sender: str
    is_live: bool = False
    seconds: float = 20.0


def read_seeds(path: Path) -> list[Address]:
    """The seed addresses of a CSV file with a column `email`, each once. Raises InvalidRecipients."""
    seeds: dict[str, Address] = {}
    for row in read_csv(path).rows():
        if isinstance(row, BadRow):
            raise InvalidRecipients(f"{path}, line {row.line}: {row.reason}")
        try:
            address = normalise(row.email)
        except InvalidAddress as error:
            raise InvalidRecipients(f"{path}, line {row.line}: {error.reason}") from None
        seeds.setdefault(address.dedupe_key, address)
    return list(seeds.values())


class Rehearsal:
    """One drill; `run` does it. `say` is told each step in a line, `nudge` tells the workers of new mail."""

    def __init__(
        self,
        plan: DrillPlan,
        ledger: Ledger,
        fleet: Fleet,
        *,
        nudge: Callable[[], object],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._fleet = fleet
        self._nudge = nudge
        self._say = say
        self._stream = ""
        self._failover: list[CampaignRecord] = []
        self._returning: list[CampaignRecord] = []

    def __repr__(self) -> str:
        return f"<Rehearsal of {self._plan.server}>"

    def run(self) -> DrillRecord:
        """Rehearse, restore, and keep what was measured. Ctrl-C ends it early, and restores, too.

        Raises DrillRefused before anything is declared dead, MessageError for a wrong sender.
        """
        self._check_plan()
        self._stream = self._stream_with_another_server()
        self._check_that_all_mail_has_another_server()
        compile_campaign(CampaignContent(token="check", **self._content(FAILOVER)))  # noqa: S106 - no secret
        plan = self._plan
        drill = self._ledger.begin_drill(
            plan.server, is_live=plan.is_live, notice_seconds=NOTICE_SECONDS, seconds=plan.seconds
        )
        broken_off = BY_THE_OPERATOR
        try:
            with suppress(KeyboardInterrupt):
                broken_off = self._rehearse(drill)
        finally:
            self._finish(drill, broken_off)
        return self._ledger.drill(drill.id)

    # ---- before: may it be done at all?

    def _check_plan(self) -> None:
        if not 0 < self._plan.seconds <= MOST_SECONDS:  # nor is it, if it is no number
            raise DrillRefused(
                f"a server may count as dead for {MOST_SECONDS:g} s at most, and for more than 0"
            )
        if not self._plan.seeds:
            raise DrillRefused("there is no address in the list of seeds")
        if len(self._plan.seeds) > MOST_SEEDS:
            raise DrillRefused(
                f"{len(self._plan.seeds):,} seed addresses are too many: a drill writes to your own people,"
                f" {MOST_SEEDS} at most"
            )

    def _stream_with_another_server(self) -> str:
        """A stream in which the server carries mail now, and another one can take over."""
        self._fleet.settings.server(self._plan.server)
        self._fleet.refresh_soon()
        self._fleet.refresh()
        streams = self._streams()
        for stream in streams:
            if self._is_in_use(stream) and self._others(stream):
                return stream
        raise DrillRefused(self._why_not(streams))

    def _check_that_all_mail_has_another_server(self) -> None:
        """A live drill concerns every stream of the server, and not only the one that is measured."""
        if self._plan.is_live and (stranded := self._stranded()):
            raise DrillRefused(
                f"no server but {self._plan.server} can take mail of the stream {stranded} now, and with"
                f" --live that mail would wait: leave --live out, or give {stranded} another server first"
                " (see [streams] in the configuration, and `campaigns servers`)"
            )

    def _streams(self) -> list[str]:
        """Those that the server is in."""
        settings = self._fleet.settings
        names = dict.fromkeys((*STREAMS, *settings.streams))
        return [name for name in names if self._plan.server in {one.name for one in settings.route(name)}]

    def _stranded(self) -> str:
        """A stream whose mail nobody could take while the server is dead; empty if there is none."""
        return next((stream for stream in self._streams() if not self._others(stream)), "")

    def _is_in_use(self, stream: str) -> bool:
        server = self._plan.server
        is_open = server not in self._fleet.off() and self._fleet.admits(server) is True
        return is_open and server in self._read and self._fleet.weight(server, stream) > 0

    def _others(self, stream: str) -> set[str]:
        """Who could take over, and has a worker to do so."""
        sender = parseaddr(self._plan.sender)[1]
        return {*self._fleet.usable(stream, sender, without=self._plan.server)} & {*self._read}

    @property
    def _read(self) -> Iterable[str]:
        return self._fleet.readers.processes

    def _why_not(self, streams: Sequence[str]) -> str:
        server = self._plan.server
        if not self._read:
            return "no worker is running, so nothing could be rehearsed: start `campaigns up`"
        if any(self._is_in_use(stream) for stream in streams):
            return f"no other server could take over from {server} now: see `campaigns servers`"
        if all(self._fleet.weight(server, stream) == 0 for stream in streams):
            return f"{server} is a cold standby and carries no mail; drill the server that it stands in for"
        return f"{server} takes no mail now, so its failover cannot be rehearsed: see `campaigns servers`"

    # ---- the drill

    def _rehearse(self, drill: DrillRecord) -> str:
        """Why it was broken off; empty if it went to its end."""
        plan = self._plan
        whose = "all mail" if plan.is_live else "the drill's mail alone"
        since = f"{datetime.fromtimestamp(drill.started_at):%H:%M:%S}"
        self._say(f"{plan.server} counts as dead for {whose}, for {plan.seconds:g} s from {since}")
        campaign = self._prepare(FAILOVER, plan.seeds)
        self._failover.append(campaign)
        self._sleep_until(drill.started_at)
        self._send(campaign)
        if stranded := self._watch_failover(drill):
            return f"it was broken off: no other server could take mail of the stream {stranded} any more"
        self._say(f"{plan.server} is alive again")
        self._return(drill)
        self._settle(drill)
        return ""

    def _prepare(self, what: str, seeds: Sequence[Address]) -> CampaignRecord:
        """A campaign of the drill, whose mail goes to the drilled server first."""
        campaign = self._create(self._content(what))
        people = [
            NewRecipient(email=one.email, dedupe_key=one.dedupe_key, domain=one.domain) for one in seeds
        ]
        self._ledger.add_recipients(campaign.id, people)
        self._ledger.steer(campaign.id, self._plan.server)
        return campaign

    def _create(self, content: dict[str, Any]) -> CampaignRecord:
        for name in self._names():
            with suppress(CampaignExists):
                return self._ledger.create_campaign(name, stream=self._stream, purpose="drill", **content)
        raise AssertionError("there are always more names")

    def _names(self) -> Iterator[str]:
        """drill-2026-11-22-1, and for the way back drill-2026-11-22-1-return, drill-2026-11-22-1-return-2."""
        if not self._failover:
            today = f"drill-{datetime.now():%Y-%m-%d}"
            return (f"{today}-{number}" for number in count(1))
        base = f"{self._failover[0].name}-return"
        return chain([base], (f"{base}-{number}" for number in count(2)))

    def _content(self, what: str) -> dict[str, Any]:
        server = self._plan.server
        return {
            "sender": self._plan.sender,
            "subject": f"This is a drill: failover of {server}",
            "text": TEXT.format(server=server, what=what),
            "headers": {"Auto-Submitted": "auto-generated"},  # RFC 3834: no vacation notice answers it
        }

    def _send(self, campaign: CampaignRecord) -> None:
        self._ledger.send(campaign.name)
        self._nudge()

    def _watch_failover(self, drill: DrillRecord) -> str:
        """Until its end, or until a live one leaves a stream without a server: then that stream."""
        assert drill.dead_until is not None
        told: set[str] = set()
        while self._ledger.now() < drill.dead_until:
            if self._plan.is_live and (stranded := self._stranded_by_now()):
                return stranded
            findings = self._findings(drill)
            self._tell_once(told, "the first mail found it dead after", self._met_seconds(drill))
            if self._plan.is_live:
                self._tell_once(told, "its breaker opened after", findings.detection_seconds)
            self._tell_once(told, "another server accepted the first mail after", findings.switch_seconds)
            time.sleep(LOOK_SECONDS)
        return ""

    def _stranded_by_now(self) -> str:
        self._fleet.refresh()
        return self._stranded()

    def _tell_once(self, told: set[str], what: str, seconds: float | None) -> None:
        if seconds is not None and what not in told:
            told.add(what)
            self._say(f"{what} {seconds:.1f} s")

    def _return(self, drill: DrillRecord) -> None:
        """One seed at a time is sent, until the server accepts one: the others get no second mail."""
        limit_seconds = LIVE_RETURN_SECONDS if self._plan.is_live else RETURN_SECONDS
        deadline = (drill.dead_until or 0.0) + limit_seconds
        for seed in islice(cycle(self._plan.seeds), MOST_RETURN_TRIES):
            if not self._is_admitted_before(deadline):
                return
            campaign = self._prepare(RETURN, [seed])
            self._returning.append(campaign)
            self._send(campaign)
            self._wait_for(campaign, min(deadline, self._ledger.now() + RETURN_TRY_SECONDS))
            seconds = self._findings(drill).return_seconds
            if seconds is not None:
                self._say(f"{self._plan.server} accepted the first mail again after {seconds:.1f} s")
                return

    def _is_admitted_before(self, deadline: float) -> bool:
        """After a live drill the breaker has to try the server first."""
        while self._ledger.now() < deadline:
            self._fleet.refresh()
            if self._fleet.state(self._plan.server) != "open":
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def _settle(self, drill: DrillRecord) -> None:
        """What the last seconds brought under way comes to its end."""
        deadline = self._ledger.now() + RETURN_TRY_SECONDS
        for campaign in self._campaigns:
            self._wait_for(campaign, deadline)

    def _wait_for(self, campaign: CampaignRecord, deadline: float) -> None:
        while self._ledger.counts(campaign.name).alive and self._ledger.now() < deadline:
            time.sleep(LOOK_SECONDS)

    def _sleep_until(self, moment: float) -> None:
        while (left := moment - self._ledger.now()) > 0:
            time.sleep(min(left, LOOK_SECONDS))

    # ---- after: restore, judge, keep

    def _finish(self, drill: DrillRecord, broken_off: str) -> None:
        self._ledger.end_declaration(drill.id)
        findings = self._findings(drill, broken_off=broken_off)
        for campaign in self._campaigns:
            if self._ledger.counts(campaign.name).alive:
                self._ledger.cancel(campaign.name)
        self._ledger.finish_drill(drill.id, findings.result())

    def _findings(self, drill: DrillRecord, *, broken_off: str = "") -> Findings:
        detection_seconds = self._opened_seconds(drill) if self._plan.is_live else self._met_seconds(drill)
        is_unseen = self._plan.is_live and detection_seconds is None
        return Findings(
            server=drill.server,
            since=drill.started_at,
            until=drill.dead_until or drill.started_at,
            states={
                delivery.id: delivery.state
                for campaign in self._campaigns
                for delivery in self._ledger.deliveries(campaign.name)
            },
            attempts=self._ledger.drill_attempts([campaign.id for campaign in self._campaigns]),
            returning=frozenset(
                delivery.id
                for campaign in self._returning
                for delivery in self._ledger.deliveries(campaign.name)
            ),
            detection_seconds=detection_seconds,
            note="its breaker did not open: too little mail found it dead" if is_unseen else "",
            broken_off=broken_off,
        )

    @property
    def _campaigns(self) -> list[CampaignRecord]:
        return [*self._failover, *self._returning]

    def _met_seconds(self, drill: DrillRecord) -> float | None:
        return self._ledger.drill(drill.id).detection_seconds

    def _opened_seconds(self, drill: DrillRecord) -> float | None:
        """When the breaker opened, in a live drill."""
        times = [
            event.at
            for event in self._ledger.events(server=drill.server)
            if event.kind == "breaker" and event.to_state == "open" and event.at >= drill.started_at
        ]
        return min(times) - drill.started_at if times else None
