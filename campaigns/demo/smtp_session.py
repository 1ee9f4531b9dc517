"""One client's dialogue with the scripted SMTP server."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from campaigns.demo.mail_record import described
from campaigns.demo.smtp_script import Misbehaviour

if TYPE_CHECKING:
    from campaigns.demo.smtp_server import ScriptedSmtpServer

__all__ = ["SmtpSession"]

_PATH = re.compile(r"(?:FROM|TO):\s*<([^>]*)>(.*)", re.IGNORECASE)
_SIZE = re.compile(r"\bSIZE=(\d+)", re.IGNORECASE)
_END = b"\r\n.\r\n"
_GARBAGE = b"\xff\xfe\x00!? this is no reply\r\n"
_MOST_LINE_OCTETS = 4096


class SmtpSession(asyncio.Protocol):
    """Reads commands one after the other, also when they come together (RFC 2920)."""

    def __init__(self, server: ScriptedSmtpServer, *, is_secure: bool) -> None:
        self._server = server
        self._is_secure = is_secure
        self._is_authenticated = False
        self._buffer = bytearray()
        self._held = False
        self._dripping: asyncio.TimerHandle | None = None
        self._next_line: Callable[[bytes], None] | None = None
        self._body: Misbehaviour | None = None
        self._in_data = False
        self._scanned = 0
        self._reset()

    def _reset(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, for uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self in self._server.sessions:
            return  # the same one again, now over TLS
        if self._server.is_crowded:
            self._server.stats["refused"] += 1
            self.say(f"421 4.7.0 {self._server.name} Error: too many connections")
            return
        self._server.sessions.add(self)
        self._server.stats["connections"] += 1
        self._answer("greeting", f"220 {self._server.name} ESMTP scripted")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.sessions.discard(self)
        self._held = True
        if self._in_data:
            self._server.stats["unfinished"] += 1
            self._server.stats["unfinished_octets"] += len(self._buffer) - 2
        if self._dripping is not None:
            self._dripping.cancel()

    def abort(self) -> None:
        """Hang up on the client."""
        self._held = True
        self._transport.abort()

    def _go_on(self) -> None:
        while not self._held:
            if self._in_data:
                if not self._take_body():
                    return
                continue
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > _MOST_LINE_OCTETS:
                    self.abort()
                return
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        if self._next_line is not None:
            take, self._next_line = self._next_line, None
            take(line)
            return
        verb, _, rest = line.decode("utf-8", "replace").partition(" ")
        verb = verb.upper()
        self._server.stats[f"commands.{verb[:8].lower()}"] += 1
        command = getattr(self, f"_on_{verb.lower()}", None) if verb.isascii() and verb.isalpha() else None
        if command is None:
            self.say("500 5.5.2 Unknown command")
        else:
            command(rest)

    # How it answers.

    def say(self, reply: str) -> None:
        """Send a reply, its lines joined with newlines; 421 ends the connection."""
        *first, last = reply.split("\n")
        lines = [f"{line[:3]}-{line[4:]}" for line in first] + [last]
        self._transport.write("".join(f"{line}\r\n" for line in lines).encode())
        if last.startswith("421"):
            self._held = True
            self._transport.close()

    def _answer(
        self, phase: str, reply: str, address: str = "", then: Callable[[], None] | None = None
    ) -> None:
        """Answer as the script wants it; `then` happens if the answer is not a refusal."""
        wrong = self._server.script.at(phase, address)
        if wrong is None:
            if then is not None and reply[0] in "23":
                then()
            self.say(reply)
        else:
            self._misbehave(wrong, reply, then or (lambda: None))

    def _misbehave(self, wrong: Misbehaviour, reply: str, then: Callable[[], None]) -> None:
        self._server.stats[f"misbehaved.{wrong.phase}.{wrong.action}"] += 1
        if wrong.action == "reply":
            said = wrong.reply or reply
            if said[0] in "23":
                then()
            self.say(said)
        elif wrong.action == "delay":
            then()
            self._pause(wrong.seconds, lambda: self.say(reply))
        elif wrong.action == "drip":
            then()
            self._drip((wrong.reply or reply).encode() + b"\r\n", wrong.seconds)
        elif wrong.action == "inject":
            then()
            self._transport.write(f"{reply}\r\n{wrong.reply or '250 injected'}\r\n".encode())
        else:
            self._break_off(wrong.action)

    def _break_off(self, action: str) -> None:
        if action in {"drop", "accept-drop"}:
            self.abort()
        elif action in {"stall", "accept-stall"}:
            self._held = True
        elif action == "cut":
            self._held = True
            self._transport.write(b"250-first of two lines\r\n250-sec")
            self._transport.close()
        else:
            self._transport.write(_GARBAGE if action == "garbage" else b"250 " + b"x" * 100_000 + b"\r\n")

    def _pause(self, seconds: float, then: Callable[[], object]) -> None:
        self._held = True

        def resume() -> None:
            if not self._transport.is_closing():
                self._held = False
                then()
                self._go_on()

        asyncio.get_running_loop().call_later(seconds, resume)

    def _drip(self, data: bytes, seconds: float) -> None:
        self._held = True
        if not data or self._transport.is_closing():
            self._held = bool(data)
            self._go_on()
            return
        self._transport.write(data[:1])
        loop = asyncio.get_running_loop()
        self._dripping = loop.call_later(seconds, self._drip, data[1:], seconds)

    # Commands.

    def _on_ehlo(self, rest: str) -> None:
        self._reset()
        self._server.last_ehlo = rest
        extensions = self._server.announced(is_secure=self._is_secure)
        self._answer("ehlo", "\n".join(f"250 {line}" for line in [self._server.name, *extensions]))

    def _on_helo(self, rest: str) -> None:
        self._reset()
        self._answer("ehlo", f"250 {self._server.name}")

    def _on_starttls(self, rest: str) -> None:
        if self._server.tls != "starttls" or self._is_secure:
            self.say("502 5.5.1 Not offered")
            return
        self._answer("starttls", "220 2.0.0 Go ahead", then=self._secure)

    def _secure(self) -> None:
        self._held = True
        self._buffer.clear()
        self._server.spawn(self._handshake())

    async def _handshake(self) -> None:
        context = self._server.ssl_context
        assert context is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_side=True
            )
        except OSError:
            self.abort()
            return
        assert transport is not None
        self._transport = transport
        self._is_secure, self._is_authenticated, self._held = True, False, False
        self._reset()
        self._go_on()

    def _on_auth(self, rest: str) -> None:
        method, _, initial = rest.partition(" ")
        if self._server.username is None or method.upper() not in {"PLAIN", "LOGIN"}:
            self.say("504 5.5.4 Not offered")
        elif method.upper() == "PLAIN":
            self._plain(initial.encode()) if initial else self._ask("334 ", self._plain)
        elif initial:
            self._login_password(initial.encode())
        else:
            self._ask("334 VXNlcm5hbWU6", self._login_password)

    def _ask(self, prompt: str, then: Callable[[bytes], None]) -> None:
        self._next_line = then
        self.say(prompt)

    def _plain(self, line: bytes) -> None:
        _, _, credentials = _decoded(line).partition(b"\0")
        username, _, password = credentials.partition(b"\0")
        self._check(username, password)

    def _login_password(self, username: bytes) -> None:
        self._ask("334 UGFzc3dvcmQ6", lambda line: self._check(_decoded(username), _decoded(line)))

    def _check(self, username: bytes, password: bytes) -> None:
        expected = ((self._server.username or "").encode(), (self._server.password or "").encode())
        self._is_authenticated = (username, password) == expected
        reply = "235 2.7.0 Welcome" if self._is_authenticated else "535 5.7.8 Authentication failed"
        self._answer("auth", reply)

    def _on_mail(self, rest: str) -> None:
        found = _PATH.match(rest)
        if found is None:
            self.say("501 5.5.4 MAIL FROM:<address>")
            return
        sender, parameters = found[1], found[2].strip()
        self._server.last_mail_parameters = parameters
        reply = self._objection(sender, parameters) or "250 2.1.0 Sender ok"
        self._answer("mail", reply, sender, then=lambda: setattr(self, "_sender", sender))

    def _objection(self, sender: str, parameters: str) -> str | None:
        if self._server.username is not None and not self._is_authenticated:
            return "530 5.7.0 Authentication required"
        if self._sender is not None:
            return "503 5.5.1 Nested MAIL"
        size, most = _SIZE.search(parameters), self._server.most_octets
        if size and most and int(size[1]) > most:
            return "552 5.3.4 Message too big"
        utf8 = "SMTPUTF8" in parameters.upper()
        if (utf8 and not self._server.offers("SMTPUTF8")) or (not utf8 and not sender.isascii()):
            return "555 5.6.7 SMTPUTF8 is not supported"
        return None

    def _on_rcpt(self, rest: str) -> None:
        found = _PATH.match(rest)
        if self._sender is None or found is None:
            self.say("503 5.5.1 MAIL first" if found else "501 5.5.4 RCPT TO:<address>")
            return
        recipient = found[1]
        then = lambda: self._recipients.append(recipient)  # noqa: E731 - a name for what comes next
        self._answer("rcpt", "250 2.1.5 Recipient ok", recipient, then=then)

    def _on_data(self, rest: str) -> None:
        reply = "354 Go ahead" if self._recipients else "503 5.5.1 RCPT first"
        self._answer("data", reply, self._last_recipient, then=self._begin_data)

    @property
    def _last_recipient(self) -> str:
        return self._recipients[-1] if self._recipients else ""

    def _begin_data(self) -> None:
        self._in_data = True
        self._scanned = 0
        # Its line end lets an empty body's dot be found like any other; nothing of it is counted.
        self._buffer[:0] = b"\r\n"
        self._body = self._server.script.at("body", self._last_recipient)

    def _on_rset(self, rest: str) -> None:
        self._reset()
        self._answer("rset", "250 2.0.0 Reset")

    def _on_noop(self, rest: str) -> None:
        self.say("250 2.0.0 Ok")

    def _on_quit(self, rest: str) -> None:
        self.say("221 2.0.0 Bye")
        self._held = True
        self._transport.close()

    # The body and its dot.

    def _take_body(self) -> bool:
        """False if more must arrive first."""
        wrong = self._body
        if wrong is not None and len(self._buffer) - 2 >= wrong.after:
            self._body = None
            self._disturb(wrong)
            return not self._held
        end = self._buffer.find(_END, max(0, self._scanned - len(_END)))
        if end < 0:
            self._scanned = len(self._buffer)
            return False
        message = bytes(self._buffer[2 : end + 2]).replace(b"\r\n..", b"\r\n.")
        del self._buffer[: end + len(_END)]
        self._in_data = False
        self._server.stats["dots"] += 1
        self._take_mail(message[1:] if message.startswith(b"..") else message)
        return True

    def _disturb(self, wrong: Misbehaviour) -> None:
        """Misbehave while the body arrives."""
        self._server.stats[f"misbehaved.body.{wrong.action}"] += 1
        reply = wrong.reply or "552 5.3.4 Message too big"
        if wrong.action == "stall":
            self._held = True
            self._transport.pause_reading()
        elif wrong.action == "delay":
            self._transport.pause_reading()
            self._pause(wrong.seconds, self._transport.resume_reading)
        elif wrong.action in {"reply", "inject"}:
            self.say(reply)
        elif wrong.action == "drip":
            self._drip(reply.encode() + b"\r\n", wrong.seconds)
        else:
            self._break_off(wrong.action)

    def _take_mail(self, message: bytes) -> None:
        wrong = self._server.script.at("dot", self._last_recipient)
        most = self._server.most_octets
        if most and len(message) > most:
            self.say("552 5.3.4 Message too big")
        elif not self._recipients:
            self.say("554 5.5.1 No recipients")
        elif wrong is None:
            self._accept(message, None)
        elif wrong.takes_the_mail:
            self._accept(message, wrong)
        else:
            self._misbehave(wrong, "250 2.0.0 Accepted", lambda: None)
        self._reset()

    def _accept(self, message: bytes, wrong: Misbehaviour | None) -> None:
        """Record durably, then answer."""
        self._held = True
        mails = [self._mail(message, recipient) for recipient in self._recipients]
        for mail in mails[:-1]:
            self._server.accept(mail, lambda: None)
        self._server.accept(mails[-1], lambda: self._answer_dot([mail["id"] for mail in mails], wrong))

    def _mail(self, message: bytes, recipient: str) -> dict[str, Any]:
        mail = {
            "id": self._server.next_id(),
            "at": time.time(),
            "server": self._server.name,
            "recipient": recipient,
            "sender": self._sender,
            **described(message),
        }
        return {**mail, "data": message.decode("latin-1")} if self._server.keeps_data else mail

    def _answer_dot(self, mail_ids: list[str], wrong: Misbehaviour | None) -> None:
        if self._transport.is_closing():
            return
        self._held = False
        reply = "250 2.0.0 Accepted"
        if wrong is None:
            self.say(reply)
        else:
            self._misbehave(wrong, reply, lambda: None)
        if wrong is None or not wrong.action.startswith("accept"):
            for mail_id in mail_ids:
                self._server.note_reply(mail_id)
        self._go_on()


def _decoded(line: bytes) -> bytes:
    try:
        return base64.b64decode(line)
    except binascii.Error:
        return b""
