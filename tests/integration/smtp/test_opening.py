"""Connecting, greeting, TLS and AUTH, and every way in which they fail."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
import trustme

from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.reply import Fault, Phase, SmtpResult
from tests.integration.smtp.trial import BODY, PATIENT, QUICK, Trial, configured, eventually
from workers.deadlines import Deadlines
from workers.smtp import SmtpConnection, SmtpFailure

Serve = Callable[..., AbstractAsyncContextManager[ScriptedSmtpServer]]


@pytest.fixture
def serve(authority: trustme.CA, tmp_path: Path) -> Serve:
    """Servers with a certificate of the authority's, or of nobody's."""

    @asynccontextmanager
    async def server(
        tls: Any = "none", identity: str = "127.0.0.1", known: bool = True, **fields: Any
    ) -> AsyncIterator[ScriptedSmtpServer]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        (authority if known else trustme.CA()).issue_cert(identity).configure_cert(context)
        options = {"tls": tls, "ssl_context": context, "keeps_data": True, **fields}
        async with ScriptedSmtpServer(tmp_path / "accepted.jsonl", **options) as running:
            yield running

    return server


async def refusal(server: ScriptedSmtpServer, deadlines: Deadlines = PATIENT, **fields: Any) -> SmtpResult:
    """Why no connection can be opened."""
    with pytest.raises(SmtpFailure) as caught:
        await SmtpConnection.open(configured(server, **fields), deadlines)
    result = caught.value.result
    assert not result.dot_sent and result.stop is None and not result.ok
    return result


async def send_over(connection: SmtpConnection, body: bytes = BODY) -> SmtpResult:
    try:
        return await Trial(body=body).over(connection)
    finally:
        await connection.close()


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_mail_goes_over_tls_with_a_certificate_that_is_verified(
    serve: Serve, tls: str, ca_file: Path
) -> None:
    body = b".0123456789abcde" * 64 * 1024 + b"\r\n"
    async with serve(tls) as server:
        connection = await SmtpConnection.open(configured(server, tls=tls, ca_file=ca_file), PATIENT)
        assert connection.is_usable
        assert (await Trial().over(connection)).ok
        assert (await send_over(connection, body)).ok
        assert [mail.size for mail in server.records()] == [len(BODY), len(body)]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_tarpit_over_tls_costs_the_deadline_of_the_body(
    serve: Serve, tls: str, ca_file: Path
) -> None:
    async with serve(tls, receive_buffer_octets=4096) as server:
        server.set("body", "stall")
        connection = await SmtpConnection.open(configured(server, tls=tls, ca_file=ca_file), QUICK)
        result = await send_over(connection, b"x" * 10_000_000)
        assert (result.phase, result.fault, result.dot_sent) == (Phase.BODY, Fault.TIMEOUT, False)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_refusal_in_mid_body_over_tls_is_seen_before_the_dot(
    serve: Serve, tls: str, ca_file: Path
) -> None:
    async with serve(tls) as server:
        server.set("body", "reply", reply="552 5.3.4 Too big", after=1)
        connection = await SmtpConnection.open(configured(server, tls=tls, ca_file=ca_file), PATIENT)
        result = await send_over(connection, b"x" * 10_000_000)
        assert (result.phase, result.dot_sent) == (Phase.BODY, False)
        assert result.reply is not None and result.reply.code == 552
        assert server.records() == []


@pytest.mark.parametrize(("tls", "phase"), [("starttls", Phase.STARTTLS), ("implicit", Phase.CONNECT)])
@pytest.mark.parametrize(
    "certificate", [{"known": False}, {"identity": "other.example.com"}], ids=["authority", "name"]
)
async def test_a_certificate_that_does_not_verify_is_refused(
    serve: Serve, tls: str, phase: Phase, certificate: dict[str, Any], ca_file: Path
) -> None:
    async with serve(tls, **certificate) as server:
        result = await refusal(server, tls=tls, ca_file=ca_file)
        assert (result.phase, result.fault) == (phase, Fault.TLS)
        assert "certificate" in result.detail.lower()
        assert server.stats["commands.mail"] == 0


async def test_starttls_is_never_silently_plain(serve: Serve, ca_file: Path) -> None:
    async with serve("none") as server:
        result = await refusal(server, tls="starttls", ca_file=ca_file)
        assert (result.phase, result.fault) == (Phase.STARTTLS, Fault.TLS)
        assert "STARTTLS" in result.detail
        assert server.stats["commands.mail"] == server.stats["commands.auth"] == 0


async def test_what_is_injected_after_starttls_is_discarded(serve: Serve, ca_file: Path) -> None:
    async with serve("starttls") as server:
        server.set("starttls", "inject", reply="250-evil.example.com\n250 SIZE 1")
        connection = await SmtpConnection.open(configured(server, tls="starttls", ca_file=ca_file), PATIENT)
        assert connection.supports("SMTPUTF8") and connection.supports("8bitmime")
        assert (await send_over(connection)).ok


@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH])
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"action": "reply", "reply": "421 4.3.2 Too many connections"}, 421),
        ({"action": "reply", "reply": "454 4.7.0 Not now"}, 454),
        ({"action": "reply", "reply": "554 5.7.1 Go away"}, 554),
        ({"action": "reply", "reply": "354 What"}, Fault.GARBAGE),
        ({"action": "drop"}, Fault.CLOSED),
        ({"action": "stall"}, Fault.TIMEOUT),
        ({"action": "drip"}, Fault.TIMEOUT),
        ({"action": "garbage"}, Fault.GARBAGE),
        ({"action": "oversized"}, Fault.OVERSIZED),
        ({"action": "cut"}, Fault.CLOSED),
    ],
)
async def test_each_phase_of_the_opening_reports_what_went_wrong(
    serve: Serve, ca_file: Path, phase: Phase, wrong: dict[str, str], expected: int | Fault
) -> None:
    async with serve("starttls", username="ann", password="secret") as server:
        server.set(phase, **wrong)
        login = {"tls": "starttls", "ca_file": ca_file, "username": "ann", "password": "secret"}
        result = await refusal(server, QUICK if expected is Fault.TIMEOUT else PATIENT, **login)
        assert result.phase is phase
        assert (result.reply.code if result.reply else result.fault) == expected
        assert "secret" not in repr(result)


@pytest.mark.parametrize("tls", ["none", "starttls", "implicit"])
async def test_the_right_password_is_let_in_and_only_one_attempt_is_made_with_a_wrong_one(
    serve: Serve, tls: str, ca_file: Path
) -> None:
    login = {"tls": tls, "ca_file": ca_file, "username": "ann"}
    async with serve(tls, username="ann", password="gehéim") as server:
        connection = await SmtpConnection.open(configured(server, password="gehéim", **login), PATIENT)
        assert (await send_over(connection)).ok
        result = await refusal(server, password="wrong", **login)
        assert (result.phase, result.reply and result.reply.code) == (Phase.AUTH, 535)
        assert server.stats["commands.auth"] == 2


async def test_a_server_without_auth_is_not_given_the_password(serve: Serve) -> None:
    async with serve("none") as server:
        result = await refusal(server, username="ann", password="secret")
        assert (result.phase, result.fault) == (Phase.AUTH, Fault.REFUSED)
        assert "AUTH" in result.detail and server.stats["commands.auth"] == 0


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
async def test_a_password_never_goes_over_plain_text_to_another_machine(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The settings refuse it too; this is what holds when a name resolves to somewhere else."""
    seen_address(monkeypatch, address)
    async with serve("none", username="ann", password="secret") as server:
        result = await refusal(server, username="ann", password="secret")
        assert (result.phase, result.fault) == (Phase.AUTH, Fault.TLS)
        assert "plain text" in result.detail and server.stats["commands.auth"] == 0
        seen_address(monkeypatch, "::1")
        await (
            await SmtpConnection.open(configured(server, username="ann", password="secret"), PATIENT)
        ).close()
        assert server.stats["commands.auth"] == 1


def seen_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have the server's end of each connection look as if it were there: no network is needed."""
    told = aiosmtplib.SMTP.get_transport_info

    def info(client: aiosmtplib.SMTP, key: str) -> Any:
        return (address, 25) if key == "peername" else told(client, key)

    monkeypatch.setattr(aiosmtplib.SMTP, "get_transport_info", info)


async def test_a_server_that_is_not_there_refuses(serve: Serve) -> None:
    async with serve("none") as server:
        await server.refuse()
        result = await refusal(server)
    assert (result.phase, result.fault) == (Phase.CONNECT, Fault.REFUSED)


async def test_a_name_that_does_not_exist_is_a_fault_of_dns(serve: Serve) -> None:
    async with serve("none") as server:
        result = await refusal(server, host="no-such-host.invalid")
    assert (result.phase, result.fault) == (Phase.CONNECT, Fault.DNS)


async def test_a_server_that_does_not_speak_tls_is_a_fault_of_tls(serve: Serve, ca_file: Path) -> None:
    async with serve("none") as server:
        result = await refusal(server, tls="implicit", ca_file=ca_file)
    assert (result.phase, result.fault) == (Phase.CONNECT, Fault.TLS)


async def test_a_cancelled_opening_leaves_no_connection(serve: Serve) -> None:
    async with serve("none") as server:
        server.set("ehlo", "stall")
        opening = asyncio.ensure_future(SmtpConnection.open(configured(server), PATIENT))
        await eventually(lambda: server.stats["commands.ehlo"] == 1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await eventually(lambda: not server.sessions)


async def test_ehlo_says_a_name_with_a_domain_or_an_address(serve: Serve) -> None:
    async with serve("none") as server:
        for given, said in (("client.example.com", "client.example.com"), (None, None)):
            connection = await SmtpConnection.open(configured(server), PATIENT, given)
            await connection.close()
            assert said is None or server.last_ehlo == said
        assert "." in server.last_ehlo
        assert server.last_ehlo == "[127.0.0.1]" or server.last_ehlo == socket.gethostname()
