"""Replies of any bytes, in any pieces: what is not well formed is never a reply, and never a success."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence

from hypothesis import event, example, given
from hypothesis import strategies as st

from campaigns.classifier import WAIT, Outcome, classify, load_rules
from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop, redact
from campaigns.server import Server
from tests.fuzz.budget import fuzzed
from tests.integration.smtp.trial import Trial
from workers.deadlines import Deadlines
from workers.reply_reader import MOST_LINE_OCTETS, MOST_REPLY_OCTETS, RawReply, ReplyReader
from workers.smtp import SmtpConnection, SmtpFailure

Said = RawReply | Fault

# RFC 5321 4.2 in one expression: all lines have the first one's code.
WELL_FORMED = re.compile(rb"([2-5][0-9][0-9])((?:-[^\r\n]*\r?\n\1)*)(?: [^\r\n]*)?\r?\n")

CODES = st.sampled_from(
    [b"250", b"251", b"354", b"421", b"450", b"550", b"554", b"199", b"600", b"25", b"2500"]
)
TEXTS = st.binary(max_size=12) | st.sampled_from(
    [
        b"Ok",
        b"2.0.0 Ok",
        b"5.1.1 <a@example.com>",
        b"\x00",
        b"\xff",
        b"\r",
        b"x" * 1990,
        b"x" * 2001,
        b"250 Ok",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\r\n", b"\n\r"])
LINES = st.tuples(CODES, st.sampled_from([b" ", b"-", b"", b"\t"]), TEXTS, ENDS).map(b"".join)
STREAMS = st.lists(LINES | st.binary(max_size=8), max_size=12).map(b"".join)


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def taken(reader: ReplyReader) -> list[Said]:
    """All that can be taken now; a fault is the last of it."""
    found: list[Said] = []
    while (said := reader.take()) is not None:
        found.append(said)
        if isinstance(said, Fault):
            break
    return found


def read(parts: Sequence[bytes]) -> list[Said]:
    """Everything, taken as it comes."""
    reader = ReplyReader()
    found: list[Said] = []
    for part in parts:
        reader.feed(part)
        assert len(reader._buffer) <= MOST_REPLY_OCTETS + len(part)
        found += taken(reader)
        if found and isinstance(found[-1], Fault):
            break
    return found


def by_grammar(data: bytes) -> list[RawReply]:
    found, at = [], 0
    while matched := WELL_FORMED.match(data, at):
        lines = re.findall(rb"[0-9]{3}[- ]?([^\r\n]*)\r?\n", matched[0])
        found.append(RawReply(int(matched[1]), b"\n".join(lines).decode("utf-8", "replace")))
        at = matched.end()
    return found


@fuzzed(300)
@given(data=STREAMS, cuts=st.lists(st.integers(0, 1 << 16), max_size=6))
@example(data=b"250-a\r\n" * 3000 + b"250 b\r\n", cuts=[16_000, 17_000])
@example(data=b"250 a\r\n" * 3000 + b"550 b\r\n", cuts=[16_000, 17_000])
def test_any_bytes_in_any_pieces_are_the_replies_that_the_grammar_knows(data: bytes, cuts: list[int]) -> None:
    whole = read([data])
    assert read(pieces(data, cuts)) == whole
    assert read([data[at : at + 1] for at in range(len(data))]) == whole
    replies = [said for said in whole if isinstance(said, RawReply)]
    expected = by_grammar(data)
    assert replies == expected[: len(replies)]
    if len(replies) < len(expected):
        assert whole[-1] is Fault.OVERSIZED
    event(f"{whole[-1] if whole and isinstance(whole[-1], Fault) else 'no fault'}")


@fuzzed(100)
@given(
    parts=st.lists(STREAMS | st.sampled_from([1, 2, 2100]).map(b"250 Ok\r\n".__mul__), max_size=6),
    late=STREAMS,
)
@example(parts=[b"250 Ok\r\n" * 2100, b"550-5", b"50 no\r\n"], late=b"250 Ok\r\n")
@example(parts=[b"250 Ok\r\n" * 2100 + b"25", b"50 no\r\n250 yes\r\n"], late=b"0 Ok\r\n")
@example(parts=[b"250 Ok\r\n" * 2100 + b"55", b"0 no\r\n2"], late=b"0 Ok\r\n")
def test_what_nobody_takes_is_bounded_and_nothing_is_read_across_the_gap(
    parts: list[bytes], late: bytes
) -> None:
    """A server that talks on and on is cut off for good: a gap in its bytes never makes a reply."""
    reader = ReplyReader()
    for part in parts:
        reader.feed(part)
    assert len(reader._buffer) <= MOST_REPLY_OCTETS + max(map(len, parts), default=0)
    found = taken(reader)
    reader.feed(late)
    if not found or not isinstance(found[-1], Fault):
        found += taken(reader)
    all_of_it = read([b"".join(parts) + late])
    if found and found[-1] is Fault.OVERSIZED:
        found = found[:-1]
    assert found == all_of_it[: len(found)]


@fuzzed(50)
@given(data=st.binary(max_size=60), times=st.integers(1, 2000))
def test_a_server_cannot_fill_the_memory(data: bytes, times: int) -> None:
    reader = ReplyReader()
    for _ in range(times):
        reader.feed(data)
        reader.take()
        assert len(reader._buffer) <= MOST_REPLY_OCTETS + len(data)
        assert sum(map(len, reader._lines)) <= MOST_REPLY_OCTETS + MOST_LINE_OCTETS


KNOWN_WORDS = st.sampled_from([rule.text for rule in load_rules() if rule.text is not None])
REPLY_TEXTS = st.one_of(
    st.text(max_size=200),
    st.from_regex(WAIT),
    KNOWN_WORDS.flatmap(st.from_regex),
    st.from_regex(r"[245]\.\d{1,3}\.\d{1,3} try again in \d{1,6} ?[a-z]{1,8}"),
    st.text(" .0123456789in@<>\"'()%\\u017f\u212a", max_size=60),
)
REPLIES = st.builds(Reply.parse, st.sampled_from([250, 354, 421, 450, 452, 550, 552, 554, -1]), REPLY_TEXTS)
RESULTS = st.builds(
    SmtpResult,
    phase=st.sampled_from(Phase) | st.just(Phase.DOT),
    reply=st.none() | REPLIES,
    fault=st.none() | st.sampled_from(Fault),
    dot_sent=st.booleans(),
    stop=st.none() | st.sampled_from(Stop),
)


@fuzzed(200)
@given(result=RESULTS)
@example(result=SmtpResult(phase=Phase.RCPT, reply=Reply.parse(450, "greylisted, try again in 5 \u017f")))
@example(
    result=SmtpResult(phase=Phase.RCPT, reply=Reply.parse(450, "4.\u0662.\u0663 in \u0665 minute\u017f"))
)
def test_every_result_has_an_answer_and_sent_is_a_2yz_to_the_dot_alone(result: SmtpResult) -> None:
    found = classify(result)
    event(found.outcome)
    accepted = (
        result.phase is Phase.DOT
        and result.dot_sent
        and result.fault is None
        and result.reply is not None
        and 200 <= result.reply.code <= 299
    )
    assert (found.outcome is Outcome.SENT) == accepted
    assert result.dot_sent or found.outcome is not Outcome.UNCERTAIN
    assert found.wait_seconds is None or 0 <= found.wait_seconds <= 86_400


@fuzzed(100)
@given(text=REPLY_TEXTS, address=st.emails())
def test_a_reply_fit_to_be_kept_is_one_short_line_without_the_address(text: str, address: str) -> None:
    kept = redact(f"{text} <{address}> {text}", known=[address])
    assert len(kept) <= 500 and kept.isprintable() and address not in kept
    kept.encode()


QUICK = Deadlines(connect_seconds=5, command_seconds=5, body_seconds=5, dot_seconds=5)
EHLO = st.lists(
    st.sampled_from(
        [
            *(b"SIZE", b"SIZE 0", b"SIZE -1", b"SIZE 10", b"SIZE 1e9", b"SIZE " + b"9" * 1900, b"size\t5"),
            *(
                b"PIPELINING",
                b"8BITMIME",
                b"SMTPUTF8",
                b"AUTH",
                b"AUTH PLAIN",
                b"AUTH=LOGIN",
                b"AUTH CRAM-MD5",
            ),
        ]
    )
    | st.binary(max_size=10).map(lambda line: line.translate(None, b"\r\n")),
    max_size=5,
).map(lambda names: b"".join(b"250-" + name + b"\r\n" for name in (b"relay", *names)) + b"250 HELP\r\n")


class Babbler(asyncio.Protocol):
    """A server that answers each line, and the dot, with given bytes, and hangs up after what is no reply."""

    def __init__(self, answers: list[bytes], at_dot: bytes) -> None:
        self.dots = 0
        self._answers, self._at_dot = list(answers), at_dot
        self._in_body = False
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._say(self._answers.pop(0))

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n" in self._heard and not self._transport.is_closing():
            line, _, self._heard = self._heard.partition(b"\r\n")
            if self._in_body:
                self._take(line)
            else:
                self._answer(line)

    def _take(self, line: bytes) -> None:
        if line == b".":
            self.dots += 1
            self._in_body = False
            self._say(self._at_dot)

    def _answer(self, line: bytes) -> None:
        said = self._answers.pop(0) if self._answers else b""
        self._in_body = line == b"DATA" and said[:1] == b"3"
        self._say(said)

    def _say(self, data: bytes) -> None:
        self._transport.write(data)
        if not WELL_FORMED.fullmatch(data):
            self._transport.close()


async def conversation(answers: list[bytes], at_dot: bytes, *, username: str) -> tuple[SmtpResult, int]:
    """How one mail ended, and how many dots arrived."""
    babblers: list[Babbler] = []

    def babbler() -> Babbler:
        babblers.append(Babbler(answers, at_dot))
        return babblers[-1]

    listener = await asyncio.get_running_loop().create_server(babbler, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = Server.model_validate(
        {"name": "primary", "host": "127.0.0.1", "port": port, "tls": "none", "username": username}
        | ({"password": "secret"} if username else {})
    )
    try:
        try:
            connection = await SmtpConnection.open(server, QUICK, "client.example.com")
        except SmtpFailure as failure:
            return failure.result, sum(one.dots for one in babblers)
        try:
            result = await Trial().over(connection)
        finally:
            connection.abort()
        await asyncio.sleep(0)
        return result, sum(one.dots for one in babblers)
    finally:
        listener.close()
        for one in babblers:
            one._transport.abort()


USUAL = {
    "greeting": b"220 ready\r\n",
    "ehlo": b"250-relay\r\n250 AUTH PLAIN LOGIN CRAM-MD5\r\n",
    "auth": b"235 ok\r\n",
    "mail": b"250 ok\r\n",
    "rcpt": b"250 ok\r\n",
    "data": b"354 go on\r\n",
    "dot": b"250 ok\r\n",
}


@fuzzed(120)
@given(
    where=st.sampled_from(list(USUAL)) | st.just("dot"),
    said=STREAMS | LINES,
    ehlo=st.just(USUAL["ehlo"]) | EHLO,
    username=st.sampled_from(["", "me"]),
)
@example(where="ehlo", said=b"250-x\r\n250 SIZE " + b"9" * 4400 + b"\r\n", ehlo=b"", username="")
@example(where="auth", said=b"334 \xff=\r\n", ehlo=b"250-x\r\n250 AUTH CRAM-MD5\r\n", username="me")
@example(where="dot", said=b"250 a\r\n", ehlo=b"250 x\r\n", username="")
@example(where="dot", said=b"250 a\rb\r\n", ehlo=b"250 x\r\n", username="")
@example(where="dot", said=b"250-a\r\n550 b\r\n", ehlo=b"250 x\r\n", username="")
@example(where="dot", said=b"354 a\r\n", ehlo=b"250 x\r\n", username="")
@example(where="dot", said=b"250 a", ehlo=b"250 x\r\n", username="")
@example(where="dot", said=b"250 " + b"x" * 2000 + b"\r\n", ehlo=b"250 x\r\n", username="")
@example(where="data", said=b"250 a\r\n", ehlo=b"250 x\r\n", username="")
@example(where="data", said=b"354 a\r\n250 b\r\n", ehlo=b"250 x\r\n", username="")
def test_whatever_a_server_says_only_a_well_formed_2yz_to_the_dot_is_sent(
    where: str, said: bytes, ehlo: bytes, username: str
) -> None:
    script = {**USUAL, "ehlo": ehlo, where: said}
    answers = [script[phase] for phase in USUAL if phase != "dot" and (phase != "auth" or username)]
    result, dots = asyncio.run(conversation(answers, script["dot"], username=username))
    found = classify(result)
    event(f"{result.phase}: {found.outcome}")
    assert result.fault is not Fault.INTERNAL
    assert dots <= result.dot_sent
    reply = WELL_FORMED.match(script["dot"])
    code = int(reply[1]) if reply is not None else 0
    if found.outcome is Outcome.SENT:
        assert result.dot_sent and 200 <= code <= 299
    elif result.dot_sent and found.outcome is not Outcome.UNCERTAIN:
        assert 400 <= code <= 599
    assert result.dot_sent or found.outcome is not Outcome.UNCERTAIN
