"""One mail over an open connection, with the commit point before its final dot."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop
from workers.deadlines import Deadlines
from workers.dialogue import Dialogue
from workers.envelope import Envelope, normalised_body, stuffed_body
from workers.reply_reader import RawReply

__all__ = ["STALE", "Transaction"]

STALE = "stale"
"""`SmtpResult.detail` where a reused connection turned out to be dead: try the same mail on a fresh one."""

_INTERRUPTION_SECONDS = 2.0
_CLOSING = 421
_RESET = b"RSET\r\n"
_SIZE = re.compile(r"[0-9]{1,20}")
"""The digits that RFC 1870 allows."""


class Transaction:
    """MAIL, RCPT, DATA, body, commit point, dot. Each step returns None for "go on", or how it ended.

    The connection is left usable, or aborted; `needs_reset` says that it must begin the next mail with RSET.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        extensions: dict[str, str],
        deadlines: Deadlines,
        *,
        is_reused: bool,
        needs_reset: bool,
    ) -> None:
        self.needs_reset = needs_reset
        self._dialogue = dialogue
        self._extensions = extensions
        self._deadlines = deadlines
        self._may_be_stale = is_reused

    async def run(
        self,
        envelope: Envelope,
        body: bytes,
        commit_point: Callable[[], Awaitable[Stop | None]],
        lease_valid: Callable[[], bool],
        on_dot: Callable[[], None],
    ) -> SmtpResult:
        """See `SmtpConnection.send`."""
        body = normalised_body(body)
        return (
            self._unfit(envelope, body)
            or await self._hand_over_envelope(envelope, body)
            or await self._hand_over_body(stuffed_body(body))
            or await self._commit(commit_point, lease_valid)
            or await self._dot(on_dot)
        )

    def _unfit(self, envelope: Envelope, body: bytes) -> SmtpResult | None:
        """What can be known to fail without asking the server."""
        if mistake := envelope.mistake:
            return _failed(Phase.MAIL, Fault.RENDER, mistake)
        if envelope.smtputf8 and "smtputf8" not in self._extensions:
            return _failed(Phase.MAIL, Fault.UTF8, "the server does not support SMTPUTF8")
        if not body.isascii() and "8bitmime" not in self._extensions:
            return _failed(Phase.MAIL, Fault.UTF8, "the server does not support 8BITMIME")
        most = self._most_octets
        if most is not None and len(body) > most:
            detail = f"the message has {len(body)} octets, the server takes {most}"
            return _failed(Phase.MAIL, Fault.SIZE, detail)
        return None

    @property
    def _most_octets(self) -> int | None:
        """What SIZE announced; None where it says nothing, or 0, which means the same (RFC 1870)."""
        announced = self._extensions.get("size", "").strip()
        return (int(announced) or None) if _SIZE.fullmatch(announced) else None

    def _parameters(self, envelope: Envelope, body: bytes) -> str:
        parameters = f" SIZE={len(body)}" if "size" in self._extensions else ""
        if not body.isascii():
            parameters += " BODY=8BITMIME"
        return parameters + (" SMTPUTF8" if envelope.smtputf8 else "")

    async def _hand_over_envelope(self, envelope: Envelope, body: bytes) -> SmtpResult | None:
        commands = [
            (Phase.MAIL, envelope.mail_command(self._parameters(envelope, body))),
            (Phase.RCPT, envelope.rcpt_command()),
            (Phase.DATA, b"DATA\r\n"),
        ]
        if self.needs_reset:
            commands.insert(0, (Phase.MAIL, _RESET))
        if interrupted := await self._interrupted(Phase.MAIL):
            return interrupted
        if "pipelining" in self._extensions:
            return await self._together(commands)
        return await self._one_by_one(commands)

    async def _one_by_one(self, commands: list[tuple[Phase, bytes]]) -> SmtpResult | None:
        for phase, command in commands:
            if interrupted := await self._interrupted(phase):
                return interrupted
            self._dialogue.write(command)
            if ended := await self._answer(phase, command):
                self.needs_reset = True
                return ended
        self.needs_reset = False
        return None

    async def _together(self, commands: list[tuple[Phase, bytes]]) -> SmtpResult | None:
        """All in one write (RFC 2920), then every reply.

        DATA accepted after a refusal of the recipient ends in an abort, not in a dot.
        """
        self._dialogue.write(b"".join(command for _, command in commands))
        refused: SmtpResult | None = None
        for phase, command in commands:
            ended = await self._answer(phase, command)
            if ended is None and refused is not None and phase is Phase.DATA:
                self._dialogue.abort()
            refused = refused or ended
            if self._dialogue.has_ended:
                break
        self.needs_reset = refused is not None
        return refused

    async def _answer(self, phase: Phase, command: bytes) -> SmtpResult | None:
        """None if the reply to a command says go on."""
        with self._dialogue.wait.during(phase):
            said = await self._dialogue.reply(self._deadlines.command_seconds)
        if command is _RESET and isinstance(said, RawReply) and said.code >= 400:
            said = Fault.CLOSED  # no refusal of this mail: the connection is no good any more
        wanted = 3 if phase is Phase.DATA else 2
        stale = self._may_be_stale
        self._may_be_stale = False
        if isinstance(said, RawReply) and said.code // 100 == wanted:
            return None
        return self._refusal(phase, said, detail=STALE if stale and _is_hang_up(said) else "")

    def _refusal(self, phase: Phase, said: RawReply | Fault, detail: str = "") -> SmtpResult:
        """A refusal leaves the connection as it is; 421 and faults end it."""
        if isinstance(said, Fault):
            self._dialogue.abort()
            return _failed(phase, said, detail)
        if said.code < 400:
            self._dialogue.abort()
            return _failed(phase, Fault.GARBAGE, f"{said.code} is no answer in this phase")
        if said.code == _CLOSING:
            self._dialogue.close()
        return _refused(phase, said, detail)

    async def _hand_over_body(self, body: bytes) -> SmtpResult | None:
        with self._dialogue.wait.during(Phase.BODY):
            fault = await self._dialogue.write_body(body, self._deadlines.body_seconds)
        if fault is not None:
            return self._refusal(Phase.BODY, fault)
        return await self._interrupted(Phase.BODY)

    async def _interrupted(self, phase: Phase) -> SmtpResult | None:
        """None if the server kept quiet.

        What it said out of turn counts where it is a refusal; the connection is of no use any more.
        """
        await self._dialogue.look()
        if not self._dialogue.was_interrupted:
            return None
        said = await self._dialogue.reply(_INTERRUPTION_SECONDS)
        self._dialogue.abort()
        if said is Fault.TIMEOUT:
            said = Fault.GARBAGE
        stale = self._may_be_stale and phase is Phase.MAIL
        return self._refusal(phase, said, detail=STALE if stale else "")

    async def _commit(
        self, commit_point: Callable[[], Awaitable[Stop | None]], lease_valid: Callable[[], bool]
    ) -> SmtpResult | None:
        stop = await commit_point()
        if stop is None:
            if interrupted := await self._interrupted(Phase.BODY):
                return interrupted
            if lease_valid():
                return None
            stop = Stop.LEASE
        self._dialogue.abort()
        return _stopped(stop)

    async def _dot(self, on_dot: Callable[[], None]) -> SmtpResult:
        """From here on only a well-formed reply says anything.

        Nothing may be awaited between the last look at the server and the write.
        """
        on_dot()
        self._dialogue.write(b".\r\n")
        said = await self._reply_to_dot()
        if isinstance(said, RawReply) and said.code // 100 != 3:
            if said.code == _CLOSING:
                self._dialogue.close()
            return _refused(Phase.DOT, said, dot_sent=True)
        self._dialogue.abort()
        fault = said if isinstance(said, Fault) else Fault.GARBAGE
        return _failed(Phase.DOT, fault, dot_sent=True)

    async def _reply_to_dot(self) -> RawReply | Fault:
        """Who is cancelled with the reply there already has the reply: it must be recorded, not forgotten."""
        try:
            with self._dialogue.wait.during(Phase.DOT):
                return await self._dialogue.reply(self._deadlines.dot_seconds)
        except asyncio.CancelledError:
            said = await self._dialogue.arrived()
            task = asyncio.current_task()
            if task is None or not isinstance(said, RawReply):
                raise
            task.uncancel()
            return said


def _is_hang_up(said: RawReply | Fault) -> bool:
    return said is Fault.CLOSED or (isinstance(said, RawReply) and said.code == _CLOSING)


def _refused(phase: Phase, reply: RawReply, detail: str = "", dot_sent: bool = False) -> SmtpResult:
    said = Reply.parse(reply.code, reply.text)
    return SmtpResult(phase=phase, reply=said, fault=None, dot_sent=dot_sent, stop=None, detail=detail)


def _failed(phase: Phase, fault: Fault, detail: str = "", dot_sent: bool = False) -> SmtpResult:
    return SmtpResult(phase=phase, reply=None, fault=fault, dot_sent=dot_sent, stop=None, detail=detail)


def _stopped(stop: Stop) -> SmtpResult:
    return SmtpResult(phase=Phase.COMMIT, reply=None, fault=None, dot_sent=False, stop=stop)
