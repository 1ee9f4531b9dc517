"""One connection for many mails: after refusals, after faults, and when the server is gone."""

import pytest

from campaigns.demo.smtp_server import EXTENSIONS, ScriptedSmtpServer
from campaigns.reply import Fault, Phase
from tests.integration.smtp.trial import Dial, Trial, eventually
from workers.smtp import STALE

ADDRESSES = [
    "bob",
    "rcpt-550-5.1.1",
    "ann",
    "data-451",
    "cy",
    "dot-554-5.7.1",
    "di",
    "rcpt-450",
    "rcpt-451",
    "ed",
]


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelining", "one-by-one"])
async def test_a_connection_goes_on_after_a_refusal(
    server: ScriptedSmtpServer, dial: Dial, extensions: tuple[str, ...]
) -> None:
    server.announce(extensions)
    connection = await dial()
    for local_part in ADDRESSES:
        result = await Trial(recipient=f"{local_part}@example.net").over(connection)
        assert result.ok is ("-" not in local_part)
    assert server.stats["connections"] == 1 and connection.messages_sent == len(ADDRESSES)
    assert [mail.recipient[:2] for mail in server.records()] == ["bo", "an", "cy", "di", "ed"]


async def test_a_refused_sender_does_not_stick(server: ScriptedSmtpServer, dial: Dial) -> None:
    connection = await dial()
    refused = await Trial(sender="mail-550@example.com").over(connection)
    assert refused.phase is Phase.MAIL and refused.reply is not None and refused.reply.code == 550
    assert (await Trial().over(connection)).ok


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelining", "one-by-one"])
@pytest.mark.parametrize(("action", "reply"), [("drop", None), ("reply", "421 4.4.2 Idle for too long")])
async def test_a_reused_connection_that_dies_at_its_first_command_is_stale(
    server: ScriptedSmtpServer, dial: Dial, action: str, reply: str | None, extensions: tuple[str, ...]
) -> None:
    server.announce(extensions)
    connection = await dial()
    assert (await Trial().over(connection)).ok
    server.set("mail", action, reply=reply)
    result = await Trial().over(connection)
    assert (result.phase, result.detail, result.dot_sent) == (Phase.MAIL, STALE, False)
    assert not connection.is_usable


@pytest.mark.parametrize("extensions", [EXTENSIONS, ()], ids=["pipelining", "one-by-one"])
async def test_a_refused_reset_is_not_taken_for_a_refusal_of_the_mail(
    server: ScriptedSmtpServer, dial: Dial, extensions: tuple[str, ...]
) -> None:
    server.announce(extensions)
    connection = await dial()
    await Trial(recipient="rcpt-550@example.net").over(connection)
    server.set("rset", "reply", reply="550 5.5.1 No")
    result = await Trial().over(connection)
    assert (result.phase, result.reply, result.fault, result.detail) == (
        Phase.MAIL,
        None,
        Fault.CLOSED,
        STALE,
    )
    assert not connection.is_usable


@pytest.mark.parametrize("phase", ["mail", "rcpt"])
async def test_only_a_reused_connection_and_its_first_answer_are_stale(
    server: ScriptedSmtpServer, dial: Dial, phase: str
) -> None:
    connection = await dial()
    if phase == "rcpt":
        assert (await Trial().over(connection)).ok
    server.set(phase, "drop")
    result = await Trial().over(connection)
    assert (result.fault, result.detail) == (Fault.CLOSED, "")


async def test_a_connection_that_the_server_closed_while_idle_is_not_usable(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    connection = await dial()
    assert connection.is_usable
    server.disconnect()
    await eventually(lambda: not connection.is_usable)
    result = await Trial().over(connection)
    assert (result.fault, result.dot_sent) == (Fault.CLOSED, False)


async def test_a_connection_on_which_the_server_spoke_unasked_is_not_usable(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    connection = await dial()
    [session] = server.sessions
    session.say("250 2.0.0 By the way")
    await eventually(lambda: not connection.is_usable)
    trial = Trial()
    result = await trial.over(connection)
    assert (result.fault, result.dot_sent) == (Fault.GARBAGE, False)
    assert server.records() == []


async def test_one_reply_too_many_is_never_taken_for_the_answer_to_the_next_command(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    server.announce([])
    server.set("rcpt", "inject", reply="354 Go ahead")
    result = await Trial().over(await dial())
    assert (result.phase, result.fault, result.dot_sent) == (Phase.DATA, Fault.GARBAGE, False)
    assert server.records() == []


async def test_closing_says_quit_and_aborting_does_not(server: ScriptedSmtpServer, dial: Dial) -> None:
    polite, rude = await dial(), await dial()
    await polite.close()
    rude.abort()
    await rude.close()
    await eventually(lambda: not server.sessions)
    assert server.stats["commands.quit"] == 1


async def test_the_repr_tells_the_state_and_no_address(server: ScriptedSmtpServer, dial: Dial) -> None:
    connection = await dial()
    await Trial().over(connection)
    assert repr(connection) == "<SmtpConnection primary: open, 1 messages>"
    connection.abort()
    assert repr(connection) == "<SmtpConnection primary: closed, 1 messages>"
