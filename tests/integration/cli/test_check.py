"""`campaigns check` against servers that speak TLS and ask for a password."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
import trustme
from pydantic import SecretStr

from campaigns.broker import redis_client
from campaigns.checks import check_broker, check_database, configuration_notes, run_checks
from campaigns.client import Client
from campaigns.demo.smtp_server import Misbehaviour, ScriptedSmtpServer
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.server import Server, Tls
from campaigns.server_check import check_server
from campaigns.settings import Delivery, Settings
from tests.crowd import eventually
from tests.postgres import PostgresServer

SQLITE_WRITE_VERSION_AT = 18
"""https://www.sqlite.org/fileformat.html#file_format_version_numbers"""


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def server_context(authority: trustme.CA, identity: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(identity).configure_cert(context)
    return context


def server(port: int, tls: Tls = "none", *, ca_file: Path | None = None, password: str = "") -> Server:
    return Server(
        name="primary",
        host="127.0.0.1",
        port=port,
        tls=tls,
        ca_file=ca_file,
        username="me" if password else "",
        password=SecretStr(password) if password else None,
    )


async def tried(server: Server, **options: float) -> tuple[bool, str]:
    found = await asyncio.to_thread(check_server, server, **options)
    return found.ok, found.detail


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_tls_and_login_are_tried_with_a_verified_certificate(
    tmp_path: Path, tls: Tls, authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority)
    options = {"tls": tls, "ssl_context": context, "username": "me", "password": "right"}
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl", **options) as there:  # type: ignore[arg-type]
        good = server(there.port, tls, ca_file=ca_file, password="right")
        ok, detail = await tried(good)
        assert ok, detail
        assert "TLSv1" in detail and "logged in" in detail
        wrong = server(there.port, tls, ca_file=ca_file, password="hunter2")
        ok, detail = await tried(wrong)
        assert (ok, "hunter2" in detail) == (False, False)
        assert "AUTH: 535" in detail
    assert not (tmp_path / "mails.jsonl").read_text()


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_that_nobody_knows_is_told(
    tmp_path: Path, tls: Tls, authority: trustme.CA
) -> None:
    context = server_context(authority)
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl", tls=tls, ssl_context=context) as there:
        ok, detail = await tried(server(there.port, tls))
    assert not ok
    assert "the certificate is not trusted" in detail


async def test_a_server_without_starttls_is_never_used_in_plain_text(tmp_path: Path) -> None:
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        ok, detail = await tried(server(there.port, "starttls"))
    assert not ok
    assert "STARTTLS" in detail
    assert 'tls = "none" sends without TLS' in detail


async def test_a_server_without_tls_from_the_first_byte_is_told_with_the_remedy(tmp_path: Path) -> None:
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        ok, detail = await tried(server(there.port, "implicit"))
    assert not ok
    assert "smtp:// instead of smtps:// is meant?" in detail


async def test_a_ca_file_that_holds_no_certificate_is_named(tmp_path: Path, authority: trustme.CA) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    context = server_context(authority)
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl", tls="starttls", ssl_context=context) as there:
        ok, detail = await tried(server(there.port, "starttls", ca_file=tmp_path / "ca.pem"))
    assert not ok
    assert f"ca_file: {tmp_path / 'ca.pem'}: is no file of certificates in PEM form" in detail


async def test_a_server_without_a_login_is_told_with_the_remedy(tmp_path: Path) -> None:
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        ok, detail = await tried(server(there.port, password="secret"))
    assert not ok
    assert "Leave username out, or use TLS" in detail


async def test_a_server_that_turns_us_away_is_told_with_its_reply(tmp_path: Path) -> None:
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        there.script.set(Misbehaviour(phase="greeting", action="reply", reply="554 5.7.1 go away"))
        ok, detail = await tried(server(there.port))
    assert not ok
    assert "554" in detail and "go away" in detail


async def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        there.script.set(Misbehaviour(phase="greeting", action="stall"))
        ok, detail = await tried(server(there.port), timeout_seconds=0.2)
    assert (ok, detail) == (False, f"127.0.0.1:{there.port}: connect: no answer in time")


async def test_a_server_that_answers_letter_by_letter_is_not_waited_for_either(tmp_path: Path) -> None:
    """Each letter comes in time; the reply would take a minute."""
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl") as there:
        reply = f"220 {'x' * 400}"
        there.script.set(Misbehaviour(phase="greeting", action="drip", reply=reply, seconds=0.15))
        ok, detail = await tried(server(there.port), timeout_seconds=0.3)
    assert (ok, detail) == (False, f"127.0.0.1:{there.port}: connect: no answer in time")


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_a_check_tells_how_quick_the_server_is_and_how_long_its_certificate_holds(
    tmp_path: Path, tls: Tls, authority: trustme.CA, ca_file: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ends = datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    authority.issue_cert("127.0.0.1", not_after=ends).configure_cert(context)
    secured = None if tls == "none" else context
    async with ScriptedSmtpServer(tmp_path / "mails.jsonl", tls=tls, ssl_context=secured) as there:
        there.script.set(Misbehaviour(phase="greeting", action="delay", seconds=0.2))
        found = await asyncio.to_thread(check_server, server(there.port, tls, ca_file=ca_file))
    assert found.ok, found.detail
    assert found.latency_seconds is not None and 0.2 <= found.latency_seconds < 5
    assert found.certificate_until == (None if tls == "none" else ends.timestamp())


def test_a_database_that_is_fit_is_found_so(database_url: str, tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, database=database_url, servers=(server(1),))
    finding = check_database(settings)
    assert finding.ok, finding.detail
    assert "durable, up to date" in finding.detail


def standby(*command: str) -> Server:
    return server(1).model_copy(update={"name": "reserve", "weight": 0, "on_activate": command})


@pytest.mark.parametrize(
    ("command", "ok", "words"),
    [
        (("true",), True, "not started; `on_activate` starts it when it is needed"),
        (("./start", "postfix"), True, "not started"),
        (("./missing",), False, "on_activate: no program './missing' can be run here"),
        (("no-such-program",), False, "no program 'no-such-program'"),
    ],
)
def test_a_standby_need_not_answer_while_it_rests_but_its_command_must_be_there(
    command: tuple[str, ...], ok: bool, words: str, tmp_path: Path
) -> None:
    (tmp_path / "start").touch(mode=0o700)
    settings = Settings(directory=tmp_path, servers=(server(1), standby(*command)))
    (found,) = [finding for finding in run_checks(settings) if finding.name == "server reserve"]
    assert (found.ok, words in found.detail) == (ok, True), found.detail


def test_a_standby_that_was_started_must_answer(ledger: Ledger, database_url: str, tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, database=database_url, servers=(server(1), standby("true")))
    assert ledger.begin_standby_turn(
        "reserve", "me", before="resting", state="starting", seconds=60, reason="no hot server takes mail"
    )
    assert ledger.end_standby_turn("reserve", "me", before="starting", state="active", reason="it answers")
    (found,) = [finding for finding in run_checks(settings) if finding.name == "server reserve"]
    assert not found.ok and "connect" in found.detail


def test_what_is_allowed_and_seldom_meant_is_noted_and_is_no_failure(tmp_path: Path) -> None:
    one, other = server(25), server(26).model_copy(update={"name": "secondary"})
    good = Settings(directory=tmp_path, servers=(one, other))
    assert configuration_notes(good) == []
    twin = other.model_copy(update={"port": 25})
    odd = Settings(
        directory=tmp_path,
        servers=(one, twin),
        streams={"receipts": ("primary", "secondary")},
        stream_weights={"receipts": {"primary": 0, "secondary": 0}},
        delivery=Delivery(dot_seconds=59),
    )
    notes = configuration_notes(odd)
    assert [note.name for note in notes] == ["servers primary, secondary", "stream receipts", "dot_seconds"]
    assert all(note.ok and note.verdict == "note" and note.to_dict()["note"] for note in notes)
    assert notes == run_checks(odd)[-3:]


@pytest.fixture
def with_broker() -> Iterator[Settings]:
    """A configuration whose embedded broker runs; its directory is short, for the socket's sake."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(directory=Path(directory), servers=(server(1),))
        broker = EmbeddedBroker.of(settings)
        broker.start()
        yield settings
        broker.stop()


def test_a_broker_that_throws_messages_away_is_found(with_broker: Settings) -> None:
    assert check_broker(with_broker).ok
    with redis_client(with_broker.broker_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    finding = check_broker(with_broker)
    assert not finding.ok
    assert "noeviction" in finding.detail and "campaigns up" not in finding.detail


def fill(client: redis.Redis, _: Path) -> None:
    client.config_set("maxmemory", 1)


def make_replica(client: redis.Redis, _: Path) -> None:
    client.replicaof("127.0.0.1", 1)


def spoil_disk(client: redis.Redis, directory: Path) -> None:
    """Its dump cannot be written: where the file should be, there is a directory."""
    (directory / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


@pytest.mark.parametrize(
    ("refuse", "told"),
    [
        (fill, ("used memory > 'maxmemory'", "; raise its maxmemory, or empty it")),
        (make_replica, ("read only replica", "; use the primary's address")),
        (spoil_disk, ("MISCONF", "; see that its disk has space and can be written")),
    ],
)
def test_a_broker_that_answers_and_takes_nothing_is_found_and_told_with_what_helps(
    with_broker: Settings, refuse: Callable[[redis.Redis, Path], None], told: tuple[str, str]
) -> None:
    with redis_client(with_broker.broker_url) as client:
        refuse(client, Path(client.config_get("dir")["dir"]))
        finding = check_broker(with_broker)
        client.config_set("save", "")  # with a dump to write it would not end
    assert not finding.ok and "takes no messages: " in finding.detail
    assert told[0] in finding.detail and finding.detail.endswith(told[1])


def test_a_broker_that_is_not_there_any_more_is_to_be_started() -> None:
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(directory=Path(directory), servers=(server(1),))
        settings.broker_socket.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(settings.broker_socket))
        finding = check_broker(settings)
    assert not finding.ok
    assert "cannot be reached" in finding.detail and finding.detail.endswith("start it with `campaigns up`")


def test_a_broker_of_ones_own_that_is_not_there_is_told_once_and_with_what_helps(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, servers=(server(1),), broker="redis://127.0.0.1:1/0")
    assert check_broker(settings).detail == (
        "the broker at 127.0.0.1:1 cannot be reached: Connection refused; start it, or correct `broker`"
    )


def test_a_sqlite_file_that_cannot_be_written_is_found(sqlite_url: str, tmp_path: Path) -> None:
    """As it is for root, too: by its header it is of a later format, to be read and not to be written."""
    settings = Settings(directory=tmp_path, servers=(server(1),), database=sqlite_url)
    assert check_database(settings).ok
    with (tmp_path / "campaigns.db").open("r+b") as file:
        file.seek(SQLITE_WRITE_VERSION_AT)
        file.write(b"\x03")
    started = time.monotonic()
    finding = check_database(settings)
    assert not finding.ok and "attempt to write a readonly database" in finding.detail
    assert time.monotonic() - started < 5


def test_a_postgresql_that_is_read_only_is_found(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    settings = Settings(directory=tmp_path, servers=(server(1),), database=postgres_url)
    assert check_database(settings).ok
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    finding = check_database(settings)
    assert not finding.ok and "read-only transaction" in finding.detail


def test_a_postgresql_user_who_may_only_read_is_found(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    reader = f"reader_{name}"
    postgres.execute(f"CREATE ROLE {reader} LOGIN IN ROLE pg_read_all_data")
    url = postgres_url.replace("campaigns@", f"{reader}@")
    try:
        finding = check_database(Settings(directory=tmp_path, servers=(server(1),), database=url))
    finally:
        postgres.execute(f"DROP ROLE {reader}")
    assert not finding.ok and "permission denied for table campaign" in finding.detail


def test_what_the_check_tries_changes_nothing(database_url: str, tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, servers=(server(1),), database=database_url)
    with Client(settings) as client:
        client.create_campaign("spring", sender="n@example.com", subject="x", text="x")
        before = client.ledger.campaign("spring")
        assert check_database(settings).ok
        assert client.ledger.campaign("spring") == before


def test_workers_are_told_and_health_is_shown_where_the_broker_runs(with_broker: Settings) -> None:
    with Client(with_broker) as client:
        campaign = client.create_campaign("spring", sender="n@example.com", subject="x", text="x")
        assert campaign.send() is True
        board = HealthBoard(with_broker.state_url)
        for _ in range(5):
            board.fault("primary", "connection refused")
        board.close()
        (status,) = client.servers()
        assert (status.state, status.share) == ("open", 0.0)
        assert status.reason is not None and status.reason.endswith(": connection refused")
        assert status.since is not None
    with redis_client(with_broker.broker_url) as redis:
        assert redis.llen("campaigns") == 1
