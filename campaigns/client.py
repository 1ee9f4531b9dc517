"""The way in: one client for one configuration, to be used from any number of threads."""

from __future__ import annotations

import shlex
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaigns.allowance import Allowance
from campaigns.campaign import Campaign
from campaigns.csv_file import read_csv
from campaigns.database import Database, create_database
from campaigns.drill import DrillPlan, Rehearsal, read_seeds
from campaigns.errors import (
    BrokerError,
    CampaignExists,
    CampaignsError,
    DatabaseError,
    InvalidRecipients,
    MessageError,
    UnknownCampaign,
)
from campaigns.events import Event
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import CampaignRecord, DrillRecord, Import, Ledger, Mode
from campaigns.message import CampaignContent, CompiledMessage, compile_campaign
from campaigns.pace import rates_per_second
from campaigns.private_files import make_private_directory
from campaigns.server_facts import server_facts
from campaigns.server_status import ServerStatus, server_statuses, with_last_fault
from campaigns.settings import BUILT_IN_STREAMS, DEFAULT_STREAM, Settings, load_settings
from campaigns.states import Status
from campaigns.suppressions import Suppressions
from campaigns.units import Rate
from campaigns.waiting import Waiting, oldest_uncertain_seconds, waiting_for_later

if TYPE_CHECKING:
    from celery import Celery

WORKER_SECONDS = 15.0
"""A worker that was not seen for so long is gone."""
_LONGEST_NAME = 100
_PAGE = 1000
_REMEDIES = {
    "subject": "",
    "html": "; leave it out to send plain text alone",
    "text": "; left out, it is made of the HTML",
}
_OPTIONS = {
    **{"sender": "--from", "subject": "--subject", "html": "--html", "text": "--text", "stream": "--stream"},
    "rate_per_second": "--rate",
}


class Client:
    """Campaigns, servers, events and suppressions of one configuration.

    Opens the database when it is first needed. Use it as a context manager, or close it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._ledger: Ledger | None = None
        self._database: Database | None = None

    def __repr__(self) -> str:
        return f"<Client of {self.settings.config_file or self.settings.directory}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections. Campaigns go on; the client may be used again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            if "_board" in self.__dict__:
                self._board.close()
            if "_allowance" in self.__dict__:
                self._allowance.close()
                del self.__dict__["_allowance"]  # it knows the ledger that is closed
            self._database = self._ledger = None

    # ---- campaigns

    def create_campaign(  # noqa: PLR0913 - what a campaign is made of, by keyword
        self,
        name: str,
        *,
        sender: str,
        subject: str,
        html: Path | str | None = None,
        text: Path | str | None = None,
        reply_to: str | None = None,
        headers: Mapping[str, str] | None = None,
        list_unsubscribe: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        stream: str = DEFAULT_STREAM,
        rate: Rate | str | None = None,
    ) -> Campaign:
        """See `Campaign.create`."""
        content: dict[str, Any] = {
            "sender": sender,
            "subject": subject,
            "html": _source(html),
            "text": _source(text),
            "reply_to": reply_to,
            "headers": dict(headers or {}),
            "list_unsubscribe": list_unsubscribe,
            "defaults": dict(defaults or {}),
        }
        self._check(name, stream, content)
        self.create_database_if_new()
        self.ledger.create_campaign(name, stream=stream, rate_per_second=_per_second(rate), **content)
        return Campaign(self, name)

    def create_or_resume(
        self,
        name: str,
        *,
        recipients: Path,
        stream: str = DEFAULT_STREAM,
        rate: Rate | None = None,
        **content: Any,
    ) -> Campaign:
        """What `campaigns send` does first: a new campaign, or the one whose import was interrupted.

        The list is held against the templates before anything is created. Raises CampaignExists, and what
        `create_campaign` and `add_csv` raise.
        """
        _check_name(name)
        present = self._present(name)  # first of all: nobody corrects a template for a name that is taken
        content = {**content, "html": _source(content.get("html")), "text": _source(content.get("text"))}
        file = read_csv(recipients)
        if next(file.rows(), None) is None:
            raise InvalidRecipients(f"{recipients} has a header and no line below it; nothing was created")
        if present is not None:
            given = {**content, "stream": stream, "rate_per_second": _per_second(rate)}
            self._check_interrupted(present, given, file.digest)
        self._check(name, stream, content).check(file.columns)
        _ = self.report_directory  # a draft whose list cannot be added would be in the way
        if present is None:
            return self.create_campaign(name, stream=stream, rate=rate, **content)
        return Campaign(self, name)

    def _present(self, name: str) -> CampaignRecord | None:
        """The campaign of that name, if there is one that may be taken up. Raises CampaignExists."""
        if self.settings.missing_database_file is not None:
            return None
        try:
            present = self.ledger.campaign(name)
        except UnknownCampaign:
            return None
        if present.status is not Status.DRAFT:
            raise _exists(present)
        return present

    def campaign(self, name: str) -> Campaign:
        """The campaign of that name. Raises UnknownCampaign."""
        return Campaign(self, self.ledger.campaign(name).name)

    def campaigns(self) -> list[Campaign]:
        """All of them, the oldest first."""
        return [Campaign(self, record.name) for record in self.ledger.campaigns()]

    @property
    def suppressions(self) -> Suppressions:
        """The addresses that get nothing."""
        return Suppressions(self)

    # ---- servers and events

    def servers(self) -> list[ServerStatus]:
        """Each configured server: health, share, limits, probes, the operator's decisions, what happened."""
        facts = server_facts(
            self.settings, self.ledger, self._board, self._allowance, readers=self._readers()
        )
        statuses = server_statuses(self.settings, facts, self.ledger.now(), trouble=self._board.trouble)
        return [with_last_fault(status, self.ledger) for status in statuses]

    def set_server_mode(self, name: str, mode: Mode, *, reason: str | None = None) -> bool:
        """Open, drain or close a server in the whole cluster, within about 2 s; kept in the database.

        `drained`: it is given no more mail, what waits still goes out through it. `closed`: what waits moves
        to the others, too. `open`: what the server said of a quota is forgotten, too. Returns False if it was
        so already. Raises UnknownServer.
        """
        changed = self.ledger.set_server_mode(self.settings.server(name).name, mode, reason)
        if mode == "open":
            changed = self._forget_full(name) or changed
        self.nudge()
        return changed

    def _forget_full(self, name: str) -> bool:
        """Whether the server was full by its own word; nothing is forgotten while the broker is away."""
        if not self._board.end_full(name, "opened by hand"):
            return False
        with closing(Fleet(self.settings, self.ledger, self._board)) as fleet:
            fleet.refresh()
        return True

    def set_server_weight(self, name: str, weight: int | None, *, reason: str | None = None) -> bool:
        """Give a server another weight in every stream, or (None) the configured one again.

        Returns False if it has it already. Raises UnknownServer.
        """
        changed = self.ledger.set_server_weight(
            name, weight, configured=self.settings.server(name).weight, reason=reason
        )
        self.nudge()
        return changed

    def closed_streams(self) -> list[str]:
        """The streams whose mail waits because the operator has drained or closed all their servers."""
        modes = self.ledger.modes()
        off = {name for name, mode in modes.items() if mode.mode != "open"}
        streams = [
            *BUILT_IN_STREAMS,
            *(name for name in self.settings.streams if name not in BUILT_IN_STREAMS),
        ]
        return [
            stream for stream in streams if off.issuperset(one.name for one in self.settings.route(stream))
        ]

    def servers_without_worker(self) -> tuple[str, ...]:
        """The servers whose queue nobody reads now."""
        readers = self._readers()
        return tuple(server.name for server in self.settings.servers if server.name not in readers)

    def events(
        self, *, server: str | None = None, campaign: str | None = None, limit: int = 100
    ) -> list[Event]:
        """The latest events, the newest last; of one server or campaign if given."""
        return [Event.from_record(one) for one in self.ledger.events(server, campaign, limit)]

    # ---- drills

    def drill(  # noqa: PLR0913 - what a drill is made of, by keyword
        self,
        recipients: Path,
        *,
        server: str,
        sender: str,
        is_live: bool = False,
        seconds: float = 20.0,
        say: Callable[[str], None] = lambda _: None,
    ) -> DrillRecord:
        """Rehearse a failover of `server`, which counts as dead for so long; returns what was measured.

        `recipients` is a CSV file of seed addresses. Unless it is live, only the drill's own mail is
        concerned. `say` is told each step in a line. Raises DrillRefused if it cannot be done now,
        InvalidRecipients and MessageError.
        """
        plan = DrillPlan(
            server=server, seeds=read_seeds(recipients), sender=sender, is_live=is_live, seconds=seconds
        )
        with closing(Fleet(self.settings, self.ledger, self._board)) as fleet:
            return Rehearsal(plan, self.ledger, fleet, nudge=self.nudge, say=say).run()

    def drills(self, limit: int = 100) -> list[DrillRecord]:
        """The latest drills, the newest last."""
        return self.ledger.drills(limit)

    # ---- what Campaign and the commands stand on

    @property
    def ledger(self) -> Ledger:
        """The ledger of the configured database. Raises DatabaseError if that cannot be used as it is."""
        with self._lock:
            if self._ledger is None:
                if (missing := self.settings.missing_database_file) is not None:
                    raise DatabaseError(
                        f"there is no database at {missing} yet: `campaigns up` or `send` makes it"
                    )
                database = create_database(self.settings.database)
                database.check()
                self._database, self._ledger = database, Ledger(database)
            return self._ledger

    def create_database_if_new(self) -> None:
        """Make the tables in a SQLite file that is not there yet, so that the first steps need no other."""
        if self.settings.missing_database_file is not None:
            self.upgrade_database()

    def upgrade_database(self) -> None:
        """Create the tables, or bring them up to date; a new file with its directory. Safe to run twice."""
        if (missing := self.settings.missing_database_file) is not None:
            try:
                missing.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(f"{missing.parent} cannot be made: {error.strerror}") from error
        database = create_database(self.settings.database)
        try:
            database.upgrade()
            database.check()
        finally:
            database.close()

    @property
    def report_directory(self) -> Path:
        """Where lists of rejected lines go: here, or beside the configuration if that cannot be.

        Raises CampaignsError if neither can.
        """
        here, beside = Path.cwd(), self.settings.data_directory
        with suppress(OSError):
            _try_to_write(here)
            return here
        try:
            make_private_directory(beside)
            _try_to_write(beside)
        except OSError as error:
            raise CampaignsError(
                f"rejected lines could be listed neither here nor in {beside}: {error.strerror};"
                " call it from a directory that can be written"
            ) from error
        return beside

    def compiled(self, record: CampaignRecord) -> CompiledMessage:
        """The campaign's message, ready to be held against a list's columns."""
        return compile_campaign(
            CampaignContent(
                subject=record.subject,
                sender=record.sender,
                token=record.token,
                html=record.html,
                text=record.text,
                reply_to=record.reply_to,
                headers=record.headers,
                list_unsubscribe=record.list_unsubscribe,
                defaults=record.defaults,
            )
        )

    def rate_per_second(self, name: str) -> float:
        """Mails of the campaign sent per second, over the last seconds."""
        record = self.ledger.campaign(name)
        return rates_per_second(self.ledger.database).get(record.id, 0.0)

    def waiting(self, name: str) -> Waiting:
        """Who of the campaign waits for a later time."""
        return waiting_for_later(self.ledger.database, self.ledger.campaign(name).id)

    def nudge(self) -> bool:
        """Tell the workers that there is work; False if the broker is not there. Never waits long."""
        from campaigns.queues import nudge  # noqa: PLC0415 - celery takes a while to load

        try:
            return nudge(self._app)
        except BrokerError:
            return False

    def oldest_uncertain_seconds(self, name: str) -> float | None:
        """For how long the campaign's oldest uncertain recipient has been so; None without any."""
        return oldest_uncertain_seconds(self.ledger.database, self.ledger.campaign(name).id)

    def publish_again(self, campaign_id: int) -> bool:
        """Publish what a paused campaign's workers passed over; what cannot be is found by the sweep.

        False if the broker is not there.
        """
        from campaigns.queues import publish_deliveries  # noqa: PLC0415

        after = 0
        try:
            while page := self.ledger.queued_of(campaign_id, after, _PAGE):
                publish_deliveries(self._app, page)
                after = page[-1].delivery_id
        except BrokerError:
            return False
        return self.nudge()

    @cached_property
    def _app(self) -> Celery:
        from campaigns.queues import create_app  # noqa: PLC0415

        return create_app(self.settings)

    @cached_property
    def _board(self) -> HealthBoard:
        names = [server.name for server in self.settings.servers]
        return HealthBoard(self.settings.state_url, policy=self.settings.breaker, servers=names)

    @cached_property
    def _allowance(self) -> Allowance:
        return Allowance(self.settings, self.ledger, fills=False)

    def _readers(self) -> frozenset[str]:
        workers = self.ledger.live_workers(WORKER_SECONDS)
        return frozenset(name for worker in workers for name in worker.servers)

    def _check(self, name: str, stream: str, content: Mapping[str, Any]) -> CompiledMessage:
        _check_name(name)
        self.settings.check_stream(stream)
        for part in ("subject", "html", "text"):
            if (value := content.get(part)) is not None and not value.strip():
                raise MessageError(f"the {part} is empty{_REMEDIES[part]}")
        return compile_campaign(CampaignContent(token="check", **content))  # noqa: S106 - no secret

    def _check_interrupted(self, present: CampaignRecord, given: Mapping[str, Any], digest: str) -> None:
        """Only a draft with this very content and list may be taken up again."""
        name, quoted = present.name, shlex.quote(present.name)
        imports = self.ledger.imports(present.id)
        if self._has_others(present, imports):
            raise _exists(present)
        others = [_OPTIONS[key] for key, value in given.items() if getattr(present, key) != value]
        if others:
            raise CampaignExists(
                f"a campaign {name} exists, whose import was interrupted, with another content"
                f" ({', '.join(others)}); repeat its"
                f" command to go on, or `campaigns cancel {quoted}` and choose another name"
            )
        if any(one.source != digest for one in imports):
            raise CampaignExists(
                f"the list was changed since the import of {name} was interrupted; put it back to go on, or"
                f" `campaigns cancel {quoted}` and choose another name"
            )

    def _has_others(self, present: CampaignRecord, imports: list[Import]) -> bool:
        """Recipients that no interrupted import can have added: somebody prepares this campaign in Python."""
        return self.ledger.counts(present.name).total != sum(one.added for one in imports)


_shared_lock = threading.Lock()
_shared: Client | None = None


def connect(settings: Settings | None = None) -> Client:
    """A client for these settings; without, for the configuration file.

    The first one that is connected is also what `Campaign.create` uses where no client is given.
    Raises SettingsError.
    """
    global _shared  # noqa: PLW0603 - the default client of the process
    client = Client(settings or load_settings())
    with _shared_lock:
        if _shared is None:
            _shared = client
    return client


def default_client() -> Client:
    """The first client that was connected; one for the configuration file if there is none yet."""
    return _shared or connect()


def _check_name(name: str) -> None:
    is_one = 0 < len(name) <= _LONGEST_NAME and name == name.strip() and name.isprintable()
    if not is_one or "/" in name or name.startswith("-"):
        raise CampaignsError(
            f"{name!r} cannot name a campaign: 1 to {_LONGEST_NAME} printable characters, no slash,"
            " no blanks around it, no hyphen at its beginning"
        )


def _exists(present: CampaignRecord) -> CampaignExists:
    return CampaignExists(f"a campaign {present.name} exists already ({present.status}); choose another name")


def _try_to_write(directory: Path) -> None:
    """Raises OSError if no file can be made there; a mode cannot tell, with lists, mounts and root."""
    tempfile.TemporaryFile(dir=directory).close()


def _source(part: Path | str | None) -> str | None:
    if not isinstance(part, Path):
        return part
    try:
        return part.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRecipients(f"{part} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InvalidRecipients(f"{part} is not UTF-8; save it as UTF-8") from None


def _per_second(rate: Rate | str | None) -> float | None:
    if isinstance(rate, str):
        try:
            rate = Rate.parse(rate)
        except ValueError as error:
            raise CampaignsError(f"rate: {error}") from None
    return None if rate is None else rate.per_second
