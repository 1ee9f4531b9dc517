"""What goes over the wire: bodies, addresses, parameters."""

import pytest

from campaigns.demo.smtp_server import EXTENSIONS, ScriptedSmtpServer
from campaigns.reply import Fault, Phase
from tests.integration.smtp.trial import BODY, Dial, Trial


def without(*names: str) -> list[str]:
    return [line for line in EXTENSIONS if line.split()[0] not in names]


async def received(server: ScriptedSmtpServer, dial: Dial, body: bytes) -> bytes:
    """What arrives of a body that is sent, together with a mail after it."""
    connection = await dial()
    assert (await Trial(body=body).over(connection)).ok
    assert (await Trial().over(connection)).ok
    first, second = server.records()
    assert second.data is not None and second.data.encode("latin-1") == BODY
    assert first.data is not None and first.size == len(first.data)
    return first.data.encode("latin-1")


@pytest.mark.parametrize(
    ("body", "arrives"),
    [
        (b".", b".\r\n"),
        (b"..\r\n", b"..\r\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\n.\nMAIL FROM:<x@y.z>\n", b"a\r\n.\r\nMAIL FROM:<x@y.z>\r\n"),
        (b"a\r.\rb\r", b"a\r\n.\r\nb\r\n"),
        (b"a\r\n.\nb\r.\r\n", b"a\r\n.\r\nb\r\n.\r\n"),
        (b"a\n\n.b\r\r\n", b"a\r\n\r\n.b\r\n\r\n"),
        (b"no end of line", b"no end of line\r\n"),
        (b"", b"\r\n"),
        (b"\r\n.\r\n.\r\n.", b"\r\n.\r\n.\r\n.\r\n"),
        ("Grüße, 今日は\n".encode(), "Grüße, 今日は\r\n".encode()),
        (bytes(range(256)).replace(b"\r", b"").replace(b"\n", b""), None),
    ],
)
async def test_a_body_arrives_whole_and_nothing_in_it_ends_it(
    server: ScriptedSmtpServer, dial: Dial, body: bytes, arrives: bytes | None
) -> None:
    assert await received(server, dial, body) == (body + b"\r\n" if arrives is None else arrives)


async def test_ten_megabytes_arrive_whole(server: ScriptedSmtpServer, dial: Dial) -> None:
    lines = (f".line {number} of a very long letter" for number in range(300_000))
    body = "\r\n".join(lines).encode() + b"\r\n"
    assert len(body) > 10_000_000
    assert await received(server, dial, body) == body


async def test_what_the_server_announced_is_used(server: ScriptedSmtpServer, dial: Dial) -> None:
    body = "Grüße\r\n".encode()
    await Trial(body=body, recipient="jörg@example.net", smtputf8=True).over(await dial())
    assert server.last_mail_parameters == f"SIZE={len(body)} BODY=8BITMIME SMTPUTF8"
    assert [mail.recipient for mail in server.records()] == ["jörg@example.net"]


async def test_what_the_server_did_not_announce_is_not_used(server: ScriptedSmtpServer, dial: Dial) -> None:
    server.announce([])
    assert (await Trial().over(await dial())).ok
    assert server.last_mail_parameters == ""


@pytest.mark.parametrize(
    ("trial", "missing", "fault"),
    [
        (Trial(recipient="jörg@example.net", smtputf8=True), "SMTPUTF8", Fault.UTF8),
        (Trial(smtputf8=True), "SMTPUTF8", Fault.UTF8),
        (Trial(body="Grüße\r\n".encode()), "8BITMIME", Fault.UTF8),
    ],
)
async def test_what_the_server_cannot_take_is_not_offered_to_it(
    server: ScriptedSmtpServer, dial: Dial, trial: Trial, missing: str, fault: Fault
) -> None:
    server.announce(without(missing))
    connection = await dial()
    result = await trial.over(connection)
    assert (result.phase, result.fault, result.dot_sent) == (Phase.MAIL, fault, False)
    assert missing in result.detail and trial.asked == []
    assert server.stats["commands.mail"] == 0 and connection.is_usable


@pytest.mark.parametrize(("announced", "taken"), [(19, False), (20, True), (0, True)])
async def test_a_message_over_the_size_limit_is_not_offered(
    server: ScriptedSmtpServer, dial: Dial, announced: int, taken: bool
) -> None:
    server.announce([f"SIZE {announced}"])
    result = await Trial(body=b".23456789\r\n.234567").over(await dial())  # 20 octets without its stuffing
    assert result.fault is (None if taken else Fault.SIZE)
    assert server.stats["commands.mail"] == taken and len(server.records()) == taken


INJECTION = "bob@example.net>\r\nRCPT TO:<eve@example.net"


@pytest.mark.parametrize(
    "trial",
    [
        Trial(recipient=INJECTION),
        Trial(sender=INJECTION),
        Trial(recipient="bob\r@example.net"),
        Trial(recipient="bob\n@example.net"),
        Trial(recipient="bob\0@example.net"),
        Trial(recipient="bob@example.net> NOTIFY=NEVER"),
        Trial(recipient="<bob@example.net"),
        Trial(recipient="jörg@example.net"),
        Trial(recipient="bob\ud800@example.net", smtputf8=True),
        Trial(recipient="b" * 250 + "@example.net"),
        Trial(recipient=""),
    ],
    ids=range(11),
)
async def test_an_address_that_would_break_the_command_never_reaches_the_wire(
    server: ScriptedSmtpServer, dial: Dial, trial: Trial
) -> None:
    connection = await dial()
    result = await trial.over(connection)
    assert (result.phase, result.fault, result.dot_sent) == (Phase.MAIL, Fault.RENDER, False)
    assert "@" not in result.detail
    assert server.stats["commands.mail"] == 0
    assert (await Trial().over(connection)).ok


async def test_the_null_sender_is_a_sender(server: ScriptedSmtpServer, dial: Dial) -> None:
    assert (await Trial(sender="").over(await dial())).ok
    assert [mail.sender for mail in server.records()] == [""]
