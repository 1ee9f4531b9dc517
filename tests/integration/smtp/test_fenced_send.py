"""Every misbehaviour of a server against the fenced data phase."""

import asyncio
from typing import Any

import pytest

from campaigns.demo.smtp_server import EXTENSIONS, ScriptedSmtpServer
from campaigns.reply import Fault, Phase, Stop
from tests.integration.smtp.trial import BODY, PATIENT, QUICK, Dial, Trial, eventually
from workers.dialogue import Dialogue

BIG = b"Subject: big\r\n\r\n" + b"0123456789abcdef" * 64 * 1024 * 10 + b"\r\n"
ALL_IN_ORDER = ["commit point", "lease", "dot"]


@pytest.fixture(params=[EXTENSIONS, EXTENSIONS[1:]], ids=["pipelining", "one-by-one"])
def each_way(server: ScriptedSmtpServer, request: pytest.FixtureRequest) -> None:
    """Commands together, and one after the other."""
    server.announce(request.param)


@pytest.mark.usefixtures("each_way")
async def test_a_mail_is_sent_and_recorded_once(server: ScriptedSmtpServer, dial: Dial) -> None:
    trial = Trial()
    result = await trial.over(await dial())
    assert result.ok and result.phase is Phase.DOT and result.dot_sent
    assert result.reply is not None and result.reply.code == 250 and result.reply.enhanced == "2.0.0"
    assert trial.asked == ALL_IN_ORDER
    [mail] = server.records()
    assert (mail.recipient, mail.sender, mail.message_id) == (
        trial.recipient,
        trial.sender,
        "<1@example.com>",
    )
    assert mail.data is not None and mail.data.encode("latin-1") == BODY


PHASES_BEFORE_THE_BODY = [Phase.MAIL, Phase.RCPT, Phase.DATA]
REFUSALS = ["450 4.2.2 Mailbox full", "550 5.1.1 No such user", "571 5.7.1 Blocked", "421 4.3.2 Closing"]
BREAKS = [
    ("drop", Fault.CLOSED),
    ("stall", Fault.TIMEOUT),
    ("drip", Fault.TIMEOUT),
    ("garbage", Fault.GARBAGE),
    ("oversized", Fault.OVERSIZED),
    ("cut", Fault.CLOSED),
]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("reply", REFUSALS)
@pytest.mark.parametrize("phase", PHASES_BEFORE_THE_BODY)
async def test_a_refusal_before_the_body_is_reported_in_its_phase(
    server: ScriptedSmtpServer, dial: Dial, phase: Phase, reply: str
) -> None:
    server.set(phase, "reply", reply=reply)
    connection = await dial()
    trial = Trial()
    result = await trial.over(connection)
    assert (result.phase, result.fault, result.dot_sent, result.ok) == (phase, None, False, False)
    assert result.reply is not None and f"{result.reply.code} {result.reply.text}" == reply
    assert trial.asked == []
    assert server.stats["dots"] == 0 and server.records() == []
    assert connection.is_usable is not reply.startswith("421")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(("action", "fault"), BREAKS)
@pytest.mark.parametrize("phase", PHASES_BEFORE_THE_BODY)
async def test_a_break_before_the_body_is_a_fault_of_its_phase(
    server: ScriptedSmtpServer, dial: Dial, phase: Phase, action: str, fault: Fault
) -> None:
    server.set(phase, action)
    connection = await dial(QUICK if fault is Fault.TIMEOUT else PATIENT)
    trial = Trial()
    result = await trial.over(connection)
    assert (result.phase, result.reply, result.fault, result.dot_sent) == (phase, None, fault, False)
    assert trial.asked == [] and not connection.is_usable
    assert server.stats["dots"] == 0 and server.records() == []


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("phase", "reply"),
    [(Phase.MAIL, "354 Go ahead"), (Phase.RCPT, "354 Go ahead"), (Phase.DATA, "250 2.0.0 Yes")],
)
async def test_an_answer_that_does_not_fit_the_phase_is_garbage(
    server: ScriptedSmtpServer, dial: Dial, phase: Phase, reply: str
) -> None:
    server.set(phase, "reply", reply=reply)
    result = await Trial().over(await dial())
    assert (result.phase, result.fault, result.dot_sent) == (phase, Fault.GARBAGE, False)
    assert server.records() == []


async def test_data_accepted_after_a_refused_recipient_gets_no_dot(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    server.set("data", "reply", reply="354 Go ahead")
    connection = await dial()
    result = await Trial(recipient="rcpt-550-5.1.1@example.net").over(connection)
    assert (result.phase, result.dot_sent) == (Phase.RCPT, False)
    assert result.reply is not None and result.reply.code == 550
    assert not connection.is_usable
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["dots"] == 0


@pytest.mark.parametrize("reply", ["552 5.3.4 Too big", "421 4.3.2 Closing", "451 4.3.0 Not now"])
async def test_a_refusal_in_mid_body_is_seen_before_the_dot(
    server: ScriptedSmtpServer, dial: Dial, reply: str
) -> None:
    server.set("body", "reply", reply=reply, after=100_000)
    trial = Trial(body=BIG)
    connection = await dial()
    result = await trial.over(connection)
    assert (result.phase, result.fault, result.dot_sent) == (Phase.BODY, None, False)
    assert result.reply is not None and f"{result.reply.code} {result.reply.text}" == reply
    assert trial.asked == [] and not connection.is_usable
    await eventually(lambda: not server.sessions)
    assert server.stats["dots"] == 0 and server.records() == []


@pytest.mark.parametrize(
    ("action", "fields", "fault"),
    [
        ("drop", {}, Fault.CLOSED),
        ("stall", {}, Fault.TIMEOUT),
        ("garbage", {}, Fault.GARBAGE),
        ("oversized", {}, Fault.OVERSIZED),
        ("cut", {}, Fault.CLOSED),
        ("drip", {"seconds": 60}, Fault.GARBAGE),
        ("reply", {"reply": "250 2.0.0 Accepted already"}, Fault.GARBAGE),
    ],
)
async def test_a_break_in_mid_body_is_a_fault_of_the_body(
    server: ScriptedSmtpServer, dial: Dial, action: str, fields: dict[str, Any], fault: Fault
) -> None:
    server.set("body", action, after=100_000, **fields)
    trial = Trial(body=BIG)
    connection = await dial(QUICK if fault is Fault.TIMEOUT else PATIENT)
    result = await trial.over(connection)
    assert (result.phase, result.reply, result.fault, result.dot_sent) == (Phase.BODY, None, fault, False)
    assert trial.asked == [] and not connection.is_usable
    assert server.stats["dots"] == 0 and server.records() == []


async def test_a_server_that_reads_nothing_costs_the_deadline_of_the_body(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    trial = Trial(recipient="body-stall@example.net", body=BIG[:20_000])
    result = await trial.over(await dial(QUICK))
    assert (result.phase, result.fault, result.dot_sent) == (Phase.BODY, Fault.TIMEOUT, False)
    assert trial.asked == [] and server.records() == []


@pytest.mark.parametrize("stop", list(Stop))
async def test_without_the_commit_point_nothing_is_accepted_although_the_whole_body_was_there(
    server: ScriptedSmtpServer, dial: Dial, stop: Stop
) -> None:
    trial = Trial(stop=stop)
    connection = await dial()
    result = await trial.over(connection)
    assert (result.phase, result.stop, result.dot_sent) == (Phase.COMMIT, stop, False)
    assert result.reply is None and result.fault is None
    assert trial.asked == ["commit point"] and not connection.is_usable
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["unfinished_octets"] == len(BODY)
    assert server.stats["commands.rset"] == server.stats["commands.quit"] == 0
    assert server.stats["dots"] == 0 and server.records() == []


async def test_a_lease_that_ran_out_during_the_commit_point_stops_the_dot(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    trial = Trial(lease=False)
    result = await trial.over(await dial())
    assert (result.phase, result.stop, result.dot_sent) == (Phase.COMMIT, Stop.LEASE, False)
    assert trial.asked == ["commit point", "lease"]
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["unfinished_octets"] == len(BODY) and server.records() == []


async def test_a_lease_that_runs_out_during_the_last_look_at_the_server_stops_the_dot(
    server: ScriptedSmtpServer, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, look = Trial(), Dialogue.look
    committed = False

    async def commit() -> None:
        nonlocal committed
        committed = True

    async def long_look(dialogue: Dialogue) -> None:
        await look(dialogue)
        if committed:
            trial.lease = False

    monkeypatch.setattr(Dialogue, "look", long_look)
    trial.meanwhile = commit
    result = await trial.over(await dial())
    assert (result.phase, result.stop, result.dot_sent) == (Phase.COMMIT, Stop.LEASE, False)
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["dots"] == 0 and server.records() == []


async def test_a_commit_point_that_fails_aborts_the_mail_and_is_heard_of(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    async def fail() -> None:
        raise LookupError("no database")

    connection = await dial()
    with pytest.raises(LookupError, match="no database"):
        await Trial(meanwhile=fail).over(connection)
    assert not connection.is_usable
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["dots"] == 0 and server.records() == []


async def test_a_refusal_during_the_commit_point_stops_the_dot(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    async def refuse() -> None:
        [session] = server.sessions
        session.say("552 5.3.4 Too big after all")

    trial = Trial(meanwhile=refuse)
    result = await trial.over(await dial())
    assert (result.phase, result.dot_sent) == (Phase.BODY, False)
    assert result.reply is not None and result.reply.code == 552
    assert "dot" not in trial.asked
    assert server.stats["dots"] == 0 and server.records() == []


async def test_a_hang_up_during_the_commit_point_is_before_the_dot(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    async def hang_up() -> None:
        server.disconnect()
        await eventually(lambda: not server.sessions)

    trial = Trial(meanwhile=hang_up)
    result = await trial.over(await dial())
    assert (result.phase, result.fault, result.dot_sent) == (Phase.BODY, Fault.CLOSED, False)
    assert "dot" not in trial.asked and server.records() == []


@pytest.mark.parametrize(
    "reply", ["250 2.0.0 Ok", "251 2.1.5 Forwarded", "200 Fine", "250 one\n250 two", "250"]
)
async def test_any_well_formed_2yz_to_the_dot_is_sent(
    server: ScriptedSmtpServer, dial: Dial, reply: str
) -> None:
    server.set("dot", "reply", reply=reply)
    result = await Trial().over(await dial())
    assert result.ok and result.dot_sent and len(server.records()) == 1


@pytest.mark.parametrize("reply", [*REFUSALS, "554 5.7.1 Spam\n554 5.7.1 Really"])
async def test_a_refusal_of_the_dot_is_definite(server: ScriptedSmtpServer, dial: Dial, reply: str) -> None:
    server.set("dot", "reply", reply=reply)
    connection = await dial()
    result = await Trial().over(connection)
    assert (result.phase, result.fault, result.dot_sent, result.ok) == (Phase.DOT, None, True, False)
    assert result.reply is not None and result.reply.code == int(reply[:3])
    assert server.stats["dots"] == 1 and server.records() == []
    assert connection.is_usable is not reply.startswith("421")


@pytest.mark.parametrize(
    ("action", "fault", "accepted"),
    [
        ("drop", Fault.CLOSED, 0),
        ("stall", Fault.TIMEOUT, 0),
        ("garbage", Fault.GARBAGE, 0),
        ("oversized", Fault.OVERSIZED, 0),
        ("cut", Fault.CLOSED, 0),
        ("drip", Fault.TIMEOUT, 1),
        ("delay", Fault.TIMEOUT, 1),
        ("accept-drop", Fault.CLOSED, 1),
        ("accept-stall", Fault.TIMEOUT, 1),
    ],
)
async def test_no_clear_answer_to_the_dot_is_no_answer_at_all(
    server: ScriptedSmtpServer, dial: Dial, action: str, fault: Fault, accepted: int
) -> None:
    server.set("dot", action)
    connection = await dial(QUICK if fault is Fault.TIMEOUT else PATIENT)
    trial = Trial()
    result = await trial.over(connection)
    assert (result.phase, result.reply, result.fault, result.dot_sent) == (Phase.DOT, None, fault, True)
    assert trial.asked == ALL_IN_ORDER and not connection.is_usable
    assert server.stats["dots"] == 1
    assert [mail.reply_sent for mail in server.records()] in ([False] * accepted, [True] * accepted)


async def test_a_3yz_to_the_dot_is_no_answer(server: ScriptedSmtpServer, dial: Dial) -> None:
    server.set("dot", "reply", reply="354 Go on")
    result = await Trial().over(await dial())
    assert (result.phase, result.reply, result.fault) == (Phase.DOT, None, Fault.GARBAGE)
    assert result.dot_sent


async def test_a_2yz_followed_by_nonsense_is_sent_and_ends_the_connection(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    server.set("dot", "inject", reply="not a reply")
    connection = await dial()
    result = await Trial().over(connection)
    assert result.ok and not connection.is_usable


async def test_a_slow_drip_within_the_deadline_is_an_answer(server: ScriptedSmtpServer, dial: Dial) -> None:
    server.set("dot", "drip", seconds=0.001)
    assert (await Trial().over(await dial())).ok


@pytest.mark.parametrize("moment", ["rcpt", "data", "body"])
async def test_cancelled_before_the_dot_nothing_is_accepted(
    server: ScriptedSmtpServer, dial: Dial, moment: str
) -> None:
    server.set(moment, "stall")
    connection = await dial()
    trial = Trial(body=BIG)
    sending = asyncio.ensure_future(trial.over(connection))
    await eventually(lambda: server.stats[f"misbehaved.{moment}.stall"] > 0 or moment == "body")
    await eventually(lambda: server.stats["commands.data"] > 0 or moment == "rcpt")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert trial.asked == [] and not connection.is_usable
    assert server.records() == []


async def test_cancelled_in_the_commit_point_nothing_is_accepted(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    connection = await dial()
    sending = asyncio.ensure_future(Trial(meanwhile=hang).over(connection))
    await reached.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not connection.is_usable
    await eventually(lambda: server.stats["unfinished"] == 1)
    assert server.stats["unfinished_octets"] == len(BODY) and server.records() == []


async def test_cancelled_at_the_dot_the_caller_knows_that_it_was_written(
    server: ScriptedSmtpServer, dial: Dial
) -> None:
    server.set("dot", "accept-stall")
    connection = await dial()
    trial = Trial()
    sending = asyncio.ensure_future(trial.over(connection))
    await eventually(lambda: len(server.records()) == 1)
    assert connection.is_at_dot
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert trial.asked == ALL_IN_ORDER and not connection.is_usable and not connection.is_at_dot
