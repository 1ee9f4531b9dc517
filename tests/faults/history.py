"""The record of a run with faults: what the servers, the ledger and the fault injector each wrote down.

The servers note a mail durably before they answer its dot. Of the ledger, triggers keep every change of a
delivery's state or fence and of a campaign's status, all in one order, whoever made it; the product knows
nothing of them. A status changes under a lock that no change of a delivery passes, so that the order of the
two is that of their transactions. The checker
(`tests.faults.checker`) judges a `History` and does no I/O.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from sqlalchemy import text

from campaigns.classifier import load_rules
from campaigns.database import Database
from campaigns.demo.mail_record import AcceptedMail
from campaigns.ledger import Ledger
from campaigns.settings import Delivery
from campaigns.states import State, Status

__all__ = [
    "CampaignSeen",
    "Change",
    "DeliverySeen",
    "Expected",
    "Fault",
    "FaultLog",
    "History",
    "Report",
    "StatusChange",
    "collect",
    "watch",
]

_LONGEST_OWN_SECONDS = 60.0
"""What the product lets a mail wait of itself: at a brake, for a full server, after a refusal by policy."""
_MESSAGE_ID = re.compile(r"<(?P<token>[^.>]+)\.(?P<delivery>\d+)@")
_COLUMNS = "old_state, new_state, old_fence, new_fence, old_server, new_server, old_owner, new_owner"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS change_log (seq {key} PRIMARY KEY, delivery_id bigint,"
    " old_state text, new_state text, old_fence bigint, new_fence bigint, old_server text, new_server text,"
    " old_owner text, new_owner text, at double precision, campaign text, old_status text, new_status text)"
)
_INSERT = (
    f"INSERT INTO change_log (delivery_id, {_COLUMNS}, at) VALUES (NEW.id, OLD.state, NEW.state, OLD.fence,"
    " NEW.fence, OLD.server, NEW.server, OLD.owner, NEW.owner, NEW.updated_at)"
)
_WHEN = "OLD.state <> NEW.state OR OLD.fence <> NEW.fence"
_INSERT_STATUS = (
    "INSERT INTO change_log (campaign, old_status, new_status, at) VALUES (NEW.name, OLD.status, NEW.status,"
    " CASE WHEN NEW.status = 'running' THEN NEW.running_since END)"
)
_WHEN_STATUS = "OLD.status <> NEW.status"
_WATCH = {
    "sqlite": (
        _TABLE.format(key="INTEGER"),
        f"CREATE TRIGGER IF NOT EXISTS watch_delivery AFTER UPDATE ON delivery WHEN {_WHEN}"
        f" BEGIN {_INSERT}; END",
        f"CREATE TRIGGER IF NOT EXISTS watch_campaign AFTER UPDATE ON campaign WHEN {_WHEN_STATUS}"
        f" BEGIN {_INSERT_STATUS}; END",
    ),
    "postgresql": (
        _TABLE.format(key="bigserial"),
        f"CREATE OR REPLACE FUNCTION watch_delivery() RETURNS trigger AS $$ BEGIN {_INSERT};"
        " RETURN NULL; END $$ LANGUAGE plpgsql",
        f"CREATE OR REPLACE TRIGGER watch_delivery AFTER UPDATE ON delivery FOR EACH ROW WHEN ({_WHEN})"
        " EXECUTE FUNCTION watch_delivery()",
        f"CREATE OR REPLACE FUNCTION watch_campaign() RETURNS trigger AS $$ BEGIN {_INSERT_STATUS};"
        " RETURN NULL; END $$ LANGUAGE plpgsql",
        "CREATE OR REPLACE TRIGGER watch_campaign AFTER UPDATE ON campaign FOR EACH ROW"
        f" WHEN ({_WHEN_STATUS}) EXECUTE FUNCTION watch_campaign()",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliverySeen:
    """A delivery's row as it stood at the end. Times in epoch seconds by the database's clock."""

    id: int
    campaign: str
    email: str
    state: State
    server: str | None
    fence: int
    deferrals: int = 0
    next_attempt_at: float | None = None
    queued_at: float | None = None
    lease_until: float | None = None
    reply: str | None = None
    updated_at: float = 0.0
    dedupe_key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of a delivery's state or fence. `at` is the ledger's own time of that transaction."""

    seq: int
    delivery_id: int
    old_state: State
    new_state: State
    old_fence: int
    new_fence: int
    old_server: str | None = None
    new_server: str | None = None
    old_owner: str | None = None
    new_owner: str | None = None
    at: float = 0.0

    @property
    def is_operators_retry(self) -> bool:
        """Only an operator's retry raises the fence without a claim."""
        return self.new_state is State.PENDING and self.new_fence > self.old_fence

    @property
    def is_resend(self) -> bool:
        """The operator had an uncertain mail sent again, and takes the risk that somebody gets it twice."""
        return self.is_operators_retry and self.old_state is State.UNCERTAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusChange:
    """One change of a campaign's status, numbered together with those of the deliveries.

    `at`: when it began to run, by the database's clock; None for the other statuses.
    """

    seq: int
    campaign: str
    old_status: Status
    new_status: Status
    at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What an attempt, or the sweep for a vanished one, reported; `at` is the time of that transaction."""

    delivery_id: int
    server: str
    fence: int
    outcome: str
    phase: str | None = None
    code: int | None = None
    reply: str | None = None
    at: float = 0.0

    @property
    def says_that_no_mail_was_taken(self) -> bool:
        """No dot was handed over, or it was refused for certain."""
        if self.outcome == "crashed":
            return False
        return self.phase not in {None, "dot"} or (self.code is not None and 400 <= self.code < 600)


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignSeen:
    """A campaign at the end: the counts that are kept, and whom it was to reach."""

    name: str
    token: str
    status: Status
    kept: Mapping[State, int]
    total: int
    sent_by: Mapping[str, int] = field(default_factory=dict)
    """Kept, too: how many each server has sent."""
    emails: frozenset[str] | None = None
    """None: nobody said whom it was to reach."""
    resends: bool = False
    """The policy for what is uncertain is `resend`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What was done to the system. `may_leave_uncertain`: how many mails it can have met after their dot.

    One whose `target` is a mail server is of that server, or of the way to it.
    """

    kind: str
    target: str = ""
    began_at: float = 0.0
    healed_at: float | None = None
    may_leave_uncertain: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What must reach a mail server. `headers`: those that must be there, once, with these values."""

    envelope_sender: str
    envelope_recipient: str
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True, kw_only=True)
class History:
    """Everything that is known of a run, after it has come to rest."""

    campaigns: Sequence[CampaignSeen]
    deliveries: Sequence[DeliverySeen]
    changes: Sequence[Change]
    reports: Sequence[Report]
    accepted: Sequence[AcceptedMail]
    status_changes: Sequence[StatusChange] = ()
    faults: Sequence[Fault] = ()
    seen_at: float = 0.0
    """When it was collected, by the database's clock."""
    final_within_seconds: float = 60.0
    """After the last fault was healed; where there was none, after the last campaign began to run."""
    longest_wait_seconds: float = 14400.0
    """The longest that any rule or setting lets a mail wait; what a reply asks for may be more."""
    longest_lease_seconds: float = 3600.0
    give_up_after_seconds: float = 172800.0
    max_crashes: int = 5
    expected: Mapping[int, Expected] = field(default_factory=dict)
    """By delivery."""
    dumps: Mapping[str, str] = field(default_factory=dict)
    """What other eyes may see, by its name: Redis, logs, events."""
    secrets: Sequence[str] = ()
    """What must be in no dump, beside every recipient's address."""
    suppressions: Mapping[str, float] = field(default_factory=dict)
    """The suppression list: since when each key (`DeliverySeen.dedupe_key`) is on it."""

    @property
    def healed_at(self) -> float:
        """When the last fault was over; the start of time if there was none."""
        return max((fault.healed_at or self.seen_at for fault in self.faults), default=0.0)

    @property
    def quiet_since(self) -> float | None:
        """From when on nothing kept anybody from being final; None where nobody knows."""
        if self.faults:
            return self.healed_at
        return max((change.at for change in self.status_changes if change.at is not None), default=None)

    @cached_property
    def statuses_of(self) -> dict[str, list[StatusChange]]:
        in_order = sorted(self.status_changes, key=lambda change: change.seq)
        return _grouped(in_order, lambda change: change.campaign)

    @cached_property
    def resending(self) -> frozenset[str]:
        """The campaigns whose policy for what is uncertain is `resend`."""
        return frozenset(campaign.name for campaign in self.campaigns if campaign.resends)

    @cached_property
    def _campaign_of(self) -> dict[int, str]:
        return {delivery.id: delivery.campaign for delivery in self.deliveries}

    @cached_property
    def _status_seqs(self) -> dict[str, list[int]]:
        return {name: [change.seq for change in changes] for name, changes in self.statuses_of.items()}

    def status_at(self, change: Change) -> Status | None:
        """The status of its campaign when a delivery changed; None where there is no such campaign."""
        name = self._campaign_of[change.delivery_id]
        statuses = self.statuses_of.get(name, [])
        if not statuses:
            return next((one.status for one in self.campaigns if one.name == name), None)
        before = bisect.bisect(self._status_seqs[name], change.seq)
        return statuses[before - 1].new_status if before else statuses[0].old_status

    def doubt_of(self, delivery_id: int) -> tuple[Change, float] | None:
        """The last commit point of what is uncertain, and when nobody knew any more; None if it has none."""
        commit = ended_at = None
        for change in self.changes_of.get(delivery_id, []):
            if change.new_state is State.COMMITTING:
                commit, ended_at = change, None
            elif change.new_state is State.UNCERTAIN and ended_at is None:
                ended_at = change.at
        return None if commit is None or ended_at is None else (commit, ended_at)

    @cached_property
    def of_campaign(self) -> dict[str, list[DeliverySeen]]:
        return _grouped(self.deliveries, lambda delivery: delivery.campaign)

    @cached_property
    def changes_of(self) -> dict[int, list[Change]]:
        in_order = sorted(self.changes, key=lambda change: change.seq)
        return _grouped(in_order, lambda change: change.delivery_id)

    @cached_property
    def reports_of(self) -> dict[int, list[Report]]:
        return _grouped(self.reports, lambda report: report.delivery_id)

    @cached_property
    def accepted_of(self) -> dict[int | None, list[AcceptedMail]]:
        """By delivery, told from the Message-ID; under None what belongs to none of the campaigns."""
        tokens = {campaign.token for campaign in self.campaigns}

        def owner(mail: AcceptedMail) -> int | None:
            found = _MESSAGE_ID.match(mail.message_id)
            return int(found["delivery"]) if found and found["token"] in tokens else None

        return _grouped(self.accepted, owner)

    def story(self, delivery_id: int) -> str:
        """All that happened to one delivery, in the order of time."""
        changes = [
            (
                change.at,
                f"{change.old_state}({change.old_fence}, {change.old_server})"
                f" -> {change.new_state}({change.new_fence}, {change.new_server}) owner {change.new_owner}",
            )
            for change in self.changes_of.get(delivery_id, [])
        ]
        reports = [
            (r.at, f"reported by fence {r.fence} via {r.server}: {r.outcome} at {r.phase} {r.code}")
            for r in self.reports_of.get(delivery_id, [])
        ]
        mails = [
            (
                mail.at,
                f"accepted by {mail.server}; the reply {'went' if mail.reply_sent else 'may not be'} out",
            )
            for mail in self.accepted_of.get(delivery_id, [])
        ]
        return "\n".join(f"  {at:.3f} {words}" for at, words in sorted([*changes, *reports, *mails]))


class FaultLog:
    """Notes each fault with its times. Safe to use from threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._faults: dict[int, Fault] = {}
        self._lock = threading.Lock()

    def begin(self, kind: str, target: str = "", *, may_leave_uncertain: int = 0) -> int:
        """Note a fault that begins now; its number is for `heal`."""
        fault = Fault(
            kind=kind, target=target, began_at=self._clock(), may_leave_uncertain=may_leave_uncertain
        )
        with self._lock:
            number = len(self._faults)
            self._faults[number] = fault
            return number

    def heal(self, number: int) -> None:
        with self._lock:
            self._faults[number] = replace(self._faults[number], healed_at=self._clock())

    def note(self, kind: str, target: str = "", *, may_leave_uncertain: int = 0) -> None:
        """Note a fault that needs no healing."""
        self.heal(self.begin(kind, target, may_leave_uncertain=may_leave_uncertain))

    @contextlib.contextmanager
    def injected(self, kind: str, target: str = "", *, may_leave_uncertain: int = 0) -> Iterator[None]:
        number = self.begin(kind, target, may_leave_uncertain=may_leave_uncertain)
        try:
            yield
        finally:
            self.heal(number)

    @property
    def faults(self) -> list[Fault]:
        with self._lock:
            return list(self._faults.values())


def watch(database: Database) -> None:
    """From now on keep every change of a delivery's state or fence, and of a campaign's status."""
    with database.write() as connection:
        for statement in _WATCH[database.dialect]:
            connection.exec_driver_sql(statement)


def collect(
    database: Database,
    accepted: Iterable[AcceptedMail],
    faults: Sequence[Fault] = (),
    *,
    emails: Mapping[str, Iterable[str]] | None = None,
    expected: Callable[[DeliverySeen], Expected] | None = None,
    dumps: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    final_within_seconds: float = 60.0,
    resends: bool = False,
    rules: Delivery | None = None,
) -> History:
    """Read everything. `emails`: by campaign, whom it was to reach; `expected`: what each must have got.

    `rules`: how mail is tried, if not by default.
    """
    rules = rules or Delivery()
    deliveries = _deliveries(database)
    return History(
        campaigns=_campaigns(database, emails or {}, resends=resends),
        deliveries=deliveries,
        changes=_changes(database),
        reports=_reports(database),
        accepted=tuple(accepted),
        status_changes=_status_changes(database),
        faults=tuple(faults),
        seen_at=database.now(),
        final_within_seconds=final_within_seconds,
        longest_wait_seconds=_longest_wait_seconds(rules),
        longest_lease_seconds=rules.lease_seconds,
        give_up_after_seconds=rules.give_up_after_seconds,
        max_crashes=rules.max_crashes,
        expected={one.id: expected(one) for one in deliveries} if expected else {},
        dumps=dict(dumps or {}),
        secrets=tuple(secrets),
        suppressions={one.dedupe_key: one.created_at for one in Ledger(database).suppressions()},
    )


def _longest_wait_seconds(rules: Delivery) -> float:
    known = (rule.wait_seconds or 0.0 for rule in load_rules())
    return max(_LONGEST_OWN_SECONDS, *rules.retry_after_seconds, *known)


def _campaigns(
    database: Database, emails: Mapping[str, Iterable[str]], *, resends: bool
) -> tuple[CampaignSeen, ...]:
    ledger = Ledger(database)
    found = []
    for campaign in ledger.campaigns():
        counts = ledger.counts(campaign.name)
        wanted = emails.get(campaign.name)
        found.append(
            CampaignSeen(
                name=campaign.name,
                token=campaign.token,
                status=counts.status,
                kept=dict(counts.states),
                total=counts.total,
                sent_by={name: server.sent for name, server in counts.servers.items() if server.sent},
                emails=None if wanted is None else frozenset(wanted),
                resends=resends,
            )
        )
    return tuple(found)


def _deliveries(database: Database) -> tuple[DeliverySeen, ...]:
    sql = (
        "SELECT d.id, c.name AS campaign, r.email, d.state, d.server, d.fence, d.deferrals,"
        " d.next_attempt_at, d.queued_at, d.lease_until, d.reply, d.updated_at, r.dedupe_key"
        " FROM delivery AS d"
        " JOIN recipient AS r ON r.id = d.id JOIN campaign AS c ON c.id = d.campaign_id"
        " WHERE c.purpose = 'campaign' ORDER BY d.id"
    )
    with database.read() as connection:
        return tuple(
            DeliverySeen(**{**row._mapping, "state": State(row.state)})
            for row in connection.execute(text(sql))
        )


def _changes(database: Database) -> tuple[Change, ...]:
    sql = (
        f"SELECT seq, delivery_id, {_COLUMNS}, at FROM change_log WHERE delivery_id IS NOT NULL ORDER BY seq"
    )
    with database.read() as connection:
        return tuple(
            Change(
                **{
                    **row._mapping,
                    "old_state": State(row.old_state),
                    "new_state": State(row.new_state),
                }
            )
            for row in connection.execute(text(sql))
        )


def _status_changes(database: Database) -> tuple[StatusChange, ...]:
    sql = (
        "SELECT seq, campaign, old_status, new_status, at FROM change_log"
        " WHERE campaign IS NOT NULL ORDER BY seq"
    )
    with database.read() as connection:
        return tuple(
            StatusChange(
                seq=row.seq,
                campaign=row.campaign,
                old_status=Status(row.old_status),
                new_status=Status(row.new_status),
                at=row.at,
            )
            for row in connection.execute(text(sql))
        )


def _reports(database: Database) -> tuple[Report, ...]:
    sql = (
        "SELECT delivery_id, server, fence, outcome, phase, code, reply, finished_at AS at"
        " FROM attempt ORDER BY id"
    )
    with database.read() as connection:
        return tuple(Report(**row._mapping) for row in connection.execute(text(sql)))


Item = TypeVar("Item")
Key = TypeVar("Key")


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
