"""What `campaigns check` looks at: database, broker, servers, alerts. Each finding is one line."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from kombu import Connection
from sqlalchemy import exc, text

from campaigns.alert_channels import channel_statuses, channels
from campaigns.broker import check_broker as check_fitness
from campaigns.broker import is_redis, redis_client, try_write
from campaigns.database import Database, create_database
from campaigns.errors import BrokerError, BrokerUnavailable, CampaignsError, DatabaseError
from campaigns.ledger import Ledger
from campaigns.server import Server
from campaigns.server_check import check_server
from campaigns.settings import BUILT_IN_STREAMS, Settings

TIMEOUT_SECONDS = 5.0
SHORT_DOT_SECONDS = 60.0
"""Some servers look through the whole mail before they accept it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried. `detail` says what was found, or what is wrong and what to do.

    `is_note`: nothing was tried, and nothing is wrong; the configuration may not be what was meant.
    """

    name: str
    ok: bool
    detail: str
    is_note: bool = False

    @property
    def verdict(self) -> str:
        """In a word."""
        return "FAILED" if not self.ok else "note" if self.is_note else "ok"

    def to_dict(self) -> dict[str, Any]:
        note = {"note": True} if self.is_note else {}
        return {"name": self.name, "ok": self.ok, "detail": self.detail, **note}


def run_checks(settings: Settings) -> list[Finding]:
    """Tries everything, the servers at the same time. Sends nothing, and leaves nothing changed."""
    findings = [check_database(settings), check_broker(settings), *check_state(settings)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        findings += pool.map(partial(_server_finding, settings), settings.servers)
    return [*findings, *check_alerts(settings), *configuration_notes(settings)]


def check_database(settings: Settings) -> Finding:
    """Reachable, durable, migrated, and not read-only."""
    if settings.missing_database_file is not None:
        detail = f"{settings.missing_database_file.name} is not there yet; `campaigns up` or `send` makes it"
        return Finding(name="database", ok=True, detail=detail)
    try:
        database = create_database(settings.database)
        try:
            database.check()
            _try_to_write(database)
            return Finding(name="database", ok=True, detail=f"{database.dialect}, durable, up to date")
        finally:
            database.close()
    except CampaignsError as error:
        return Finding(name="database", ok=False, detail=str(error))


def _try_to_write(database: Database) -> None:
    """An update that meets no row, taken back: one that may not write is refused all the same.

    Raises DatabaseError. In a transaction that began as one that reads: one that writes would ask a file that
    is read-only for its lock, until the time for that is over.
    """
    try:
        with database.read() as connection:
            connection.execute(text("UPDATE campaign SET name = name WHERE id < 0"))
            connection.rollback()
    except exc.DBAPIError as error:
        refusal = str(error.orig).strip().splitlines()[0]
        raise DatabaseError(f"the database cannot be written: {refusal}") from error


def check_broker(settings: Settings) -> Finding:
    """Reachable, never evicting what it holds, and taking what it is given."""
    if settings.embedded and not settings.broker_socket.exists():
        return Finding(name="broker", ok=True, detail="embedded; `campaigns up` starts it")
    try:
        try_broker(settings)
        try_write(settings)
        kept = ", and throws nothing away (noeviction)" if is_redis(settings.broker_url) else ""
        return Finding(name="broker", ok=True, detail=f"it answers{kept}")
    except BrokerError as error:
        return Finding(name="broker", ok=False, detail=f"{error}{_broker_remedy(settings, error)}")


def _broker_remedy(settings: Settings, error: BrokerError) -> str:
    """What helps, where the broker's own words do not say so: one that refuses is there already."""
    refusal = error.__cause__
    if isinstance(refusal, redis.OutOfMemoryError):
        return "; raise its maxmemory, or empty it"
    if isinstance(refusal, redis.ReadOnlyError):
        return "; use the primary's address"
    if isinstance(refusal, redis.ResponseError) and "MISCONF" in str(refusal):
        return "; see that its disk has space and can be written"
    is_away = isinstance(error, BrokerUnavailable) and not isinstance(refusal, redis.ResponseError)
    if not is_away:
        return ""
    return "; start it with `campaigns up`" if settings.embedded else "; start it, or correct `broker`"


def try_broker(settings: Settings) -> None:
    """Raises BrokerUnavailable if it cannot be reached, BrokerError if it is not fit for use."""
    if is_redis(settings.broker_url):
        check_fitness(settings)
    else:
        _connect_amqp(settings.broker_url)


def check_state(settings: Settings) -> list[Finding]:
    """Where health is shared, if that is a place of its own."""
    if settings.state is None:
        return []
    try:
        with redis_client(settings.state, answer_seconds=TIMEOUT_SECONDS) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        detail = f"cannot be reached: {error}; health is not shared meanwhile"
        return [Finding(name="state", ok=False, detail=detail)]
    return [Finding(name="state", ok=True, detail="it answers")]


def check_alerts(settings: Settings) -> list[Finding]:
    """Whom the workers tell of what happens, and whether the last try got through. Tells nobody."""
    named = channels(settings.alerts)
    if not named:
        detail = "nobody is told when a server fails: [alerts] names neither a webhook nor an email"
        return [Finding(name="alerts", ok=True, detail=detail)]
    failing = _failing_channels(settings)
    return [
        Finding(
            name=f"alerts by {channel}",
            ok=channel not in failing,
            detail=f"{to}: {failing.get(channel, 'configured; `campaigns alerts test` sends a message')}",
        )
        for channel, to in named.items()
    ]


def configuration_notes(settings: Settings) -> list[Finding]:
    """What is allowed, and seldom meant."""
    notes = [*_one_place(settings), *_no_weights(settings)]
    dot_seconds = settings.delivery.dot_seconds
    if dot_seconds < SHORT_DOT_SECONDS:
        detail = (
            f"{dot_seconds:g} s is short: what a server accepts later than that becomes `uncertain`"
            " (RFC 5321 4.5.3.2.6 asks for 10 minutes, 600)"
        )
        notes.append(("dot_seconds", detail))
    return [Finding(name=name, ok=True, detail=detail, is_note=True) for name, detail in notes]


def _one_place(settings: Settings) -> list[tuple[str, str]]:
    """Servers that are one server, for what can go wrong with it."""
    places: dict[tuple[str, int], list[str]] = {}
    for server in settings.servers:
        places.setdefault((server.host.lower(), server.port), []).append(server.name)
    return [
        (
            f"servers {', '.join(names)}",
            f"all are {host}:{port}: none can stand in for another when that fails",
        )
        for (host, port), names in places.items()
        if len(names) > 1
    ]


def _no_weights(settings: Settings) -> list[tuple[str, str]]:
    streams = dict.fromkeys((*BUILT_IN_STREAMS, *settings.streams))
    idle = [
        stream
        for stream in streams
        if not any(settings.weight(server.name, stream) for server in settings.route(stream))
    ]
    detail = "each of its servers has weight 0, as one for need alone; they share its mail evenly"
    return [(f"stream {stream}", detail) for stream in idle]


def _failing_channels(settings: Settings) -> dict[str, str]:
    """What is wrong with them; none of them if the database cannot be asked, which another finding tells."""
    if settings.missing_database_file is not None:
        return {}
    database = create_database(settings.database)
    try:
        statuses = channel_statuses(settings.alerts, Ledger(database))
        return {status.channel: status.text for status in statuses if status.is_failing}
    except CampaignsError:
        return {}
    finally:
        database.close()


def _connect_amqp(url: str) -> None:
    connection = Connection(url, connect_timeout=TIMEOUT_SECONDS)
    outages: tuple[type[BaseException], ...] = (OSError, *connection.connection_errors)
    try:
        with connection:
            connection.connect()
    except outages as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrokerUnavailable(f"the broker cannot be reached: {cause}") from error


def _server_finding(settings: Settings, server: Server) -> Finding:
    name = f"server {server.name}"
    for key, command in (("on_activate", server.on_activate), ("on_deactivate", server.on_deactivate)):
        if command and not _can_run(command[0], settings.directory):
            return Finding(name=name, ok=False, detail=f"{key}: no program {command[0]!r} can be run here")
    found = check_server(server)
    if not found.ok and server.on_activate and not _is_started(settings, server):
        detail = f"{server.host}:{server.port}: not started; `on_activate` starts it when it is needed"
        return Finding(name=name, ok=True, detail=detail)
    return Finding(name=name, ok=found.ok, detail=found.detail)


def _can_run(program: str, directory: Path) -> bool:
    """Whether the command of a standby is there: with a slash beside the configuration, else in PATH."""
    return shutil.which(str(directory / program) if "/" in program else program) is not None


def _is_started(settings: Settings, server: Server) -> bool:
    """Whether a standby should answer; not if the database cannot be asked, which another finding tells."""
    if settings.missing_database_file is not None:
        return False
    database = create_database(settings.database)
    try:
        standby = Ledger(database).standbys().get(server.name)
        return standby is not None and standby.state == "active"
    except CampaignsError:
        return False
    finally:
        database.close()
