"""An SMTP server that records every mail it accepts, and misbehaves on purpose.

    python -m campaigns.demo.smtp_server --port 2525 --record primary.jsonl --control 0

prints one line of JSON when it is ready: {"name": ..., "port": ..., "control": ...}. A mail is in the file,
durably, before the dot is answered; see `campaigns.demo.mail_record`.

The recipient's address chooses a misbehaviour (what follows a "+" is ignored: many may differ):

    rcpt-550-5.1.1@  data-451@  body-552@  dot-554-5.7.1@    that reply in that phase (body: while it arrives)
    rcpt-drop@  data-stall@  dot-drip@  dot-garbage@  dot-oversized@  dot-cut@  dot-delay-2.5@
    body-stall@  body-drop@                                  reads nothing more; hangs up in mid-body
    dot-accept-drop@  dot-accept-stall@                      takes the mail, and never says so
    greylist@  greylist-3@                                   refuses with 451 once, three times

and the sender's one at MAIL (mail-450@). The control channel takes JSON objects, a line each, and answers so:

    {"set": {"phase": "dot", "action": "reply", "reply": "450 4.2.2 full", "times": 3, "probability": 0.5}}
    {"clear": true}   {"stats": true}   {"extensions": ["SIZE 1000", "8BITMIME"]}
    {"listen": false}   {"disconnect": true}   {"most_connections": 5}

Phases: greeting ehlo starttls auth mail rcpt data body dot rset, and `every` for all of them but the body.
Actions: reply, delay, drop, stall, drip (a byte every `seconds`), garbage, oversized, cut (ends in a
multi-line reply), inject (says one reply too many), accept-drop, accept-stall. In the body, `after` says how
many octets are read first.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from campaigns.demo.mail_record import AcceptedMail, MailRecord, read_records
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.demo.smtp_script import Misbehaviour, Script, ScriptMistake
from campaigns.demo.smtp_session import SmtpSession

__all__ = [
    "AcceptedMail",
    "Misbehaviour",
    "ScriptMistake",
    "ScriptedSmtpServer",
    "SmtpServerProcess",
    "read_records",
]

EXTENSIONS = ("PIPELINING", "SIZE 52428800", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8")


class ScriptedSmtpServer:
    """The server within this process, on the running loop: `async with ScriptedSmtpServer(file) as server`.

    `port` 0 means any free one. `tls` needs an `ssl_context`. With `username`, AUTH is required.
    `receive_buffer_octets` makes the kernel's buffer small: a server which does not read is felt sooner.
    """

    def __init__(  # noqa: PLR0913 - each is one independent trait of a server
        self,
        record: Path,
        *,
        name: str = "scripted",
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Literal["none", "starttls", "implicit"] = "none",
        ssl_context: ssl.SSLContext | None = None,
        username: str | None = None,
        password: str | None = None,
        extensions: Sequence[str] = EXTENSIONS,
        keeps_data: bool = False,
        receive_buffer_octets: int | None = None,
    ) -> None:
        if tls != "none" and ssl_context is None:
            raise ScriptMistake(f"tls {tls!r} needs a certificate")
        self.record, self.name, self.host, self.port = record, name, host, port
        self.tls, self.ssl_context = tls, ssl_context
        self.username, self.password = username, password
        self.keeps_data = keeps_data
        self.script = Script()
        self.most_connections: int | None = None
        self.stats: Counter[str] = Counter()
        self.sessions: set[SmtpSession] = set()
        self.last_ehlo = ""
        self.last_mail_parameters = ""
        self._extensions = tuple(extensions)
        self._receive_buffer_octets = receive_buffer_octets
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._listening_change: asyncio.Task[None] | None = None
        self._mail_record: MailRecord | None = None

    def __repr__(self) -> str:
        state = f"listening on port {self.port}" if self._listener else "closed"
        return f"<ScriptedSmtpServer {self.name}: {state}, {self.stats['accepted']} accepted>"

    async def start(self) -> None:
        """Open the record and listen. Raises OSError."""
        self._mail_record = MailRecord(self.record, asyncio.get_running_loop().call_soon_threadsafe)
        await self.listen()

    async def listen(self) -> None:
        """Take connections (again), on the same port."""
        if self._listener is not None:
            return
        listening = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._receive_buffer_octets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_octets)
        try:
            listening.bind((self.host, self.port))
        except OSError:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        context = self.ssl_context if self.tls == "implicit" else None
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: SmtpSession(self, is_secure=context is not None),
            sock=listening,
            ssl=context,
            backlog=1024,
        )

    async def refuse(self) -> None:
        """Take no more connections; those that are open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def disconnect(self) -> None:
        """Hang up on every client."""
        for session in tuple(self.sessions):
            session.abort()

    async def stop(self) -> None:
        """Hang up, and close the record."""
        await self.refuse()
        self.disconnect()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._mail_record is not None:
            await asyncio.to_thread(self._mail_record.close)
            self._mail_record = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What the script says.

    def set(self, phase: str, action: str, **fields: Any) -> None:
        """Misbehave from now on; see `Misbehaviour`. Raises ScriptMistake."""
        self.script.set(Misbehaviour.of({"phase": phase, "action": action, **fields}))

    def clear(self) -> None:
        """Behave from now on."""
        self.script.clear()

    def announce(self, extensions: Sequence[str]) -> None:
        """What EHLO offers from now on, STARTTLS and AUTH apart."""
        self._extensions = tuple(extensions)

    def records(self) -> list[AcceptedMail]:
        """What was accepted, read from the file."""
        return read_records(self.record)

    def control(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """One command of the control channel. Raises ScriptMistake."""
        match command:
            case {"set": dict(fields)}:
                self.script.set(Misbehaviour.of(fields))
            case {"clear": True}:
                self.clear()
            case {"extensions": list(extensions)}:
                self.announce([str(extension) for extension in extensions])
            case {"disconnect": True}:
                self.disconnect()
            case {"most_connections": int() | None as most}:
                self.most_connections = most
            case {"listen": bool(wanted)}:
                self._listening_change = self.spawn(self.listen() if wanted else self.refuse())
            case {"stats": True}:
                return {"stats": dict(self.stats), "open": len(self.sessions)}
            case _:
                known = "set, clear, extensions, disconnect, listen, most_connections, stats"
                raise ScriptMistake(f"a command is one of {known}")
        return {"ok": True}

    async def settled(self) -> None:
        """Returns when what the last command began is done."""
        if self._listening_change is not None:
            change, self._listening_change = self._listening_change, None
            await asyncio.wait({change})
            await asyncio.sleep(0.05)  # uvloop closes a listening socket a little later

    # What the sessions ask.

    @property
    def is_crowded(self) -> bool:
        """Whether another connection is one too many."""
        return self.most_connections is not None and len(self.sessions) >= self.most_connections

    def announced(self, *, is_secure: bool) -> list[str]:
        """The lines that EHLO offers."""
        lines = list(self._extensions)
        if self.tls == "starttls" and not is_secure:
            lines.append("STARTTLS")
        if self.username is not None:
            lines.append("AUTH PLAIN LOGIN")
        return lines

    def offers(self, extension: str) -> bool:
        return any(line.split()[0] == extension for line in self._extensions)

    @property
    def most_octets(self) -> int:
        """The limit that SIZE announces; 0 for none."""
        sizes = [line.split()[1:] for line in self._extensions if line.startswith("SIZE")]
        return int(sizes[0][0]) if sizes and sizes[0] else 0

    def next_id(self) -> str:
        return f"{self.name}-{self._run}-{next(self._numbers)}"

    def accept(self, mail: Mapping[str, Any], then: Callable[[], None]) -> None:
        self.stats["accepted"] += 1
        assert self._mail_record is not None
        self._mail_record.accept(mail, then)

    def note_reply(self, mail_id: str) -> None:
        if self._mail_record is not None:
            self._mail_record.note_reply(mail_id)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside, until `stop`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def answer_control(
    server: ScriptedSmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one client of the control channel."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            try:
                command = json.loads(line)
                if not isinstance(command, dict):
                    raise ScriptMistake("a command is a JSON object")
                answer = server.control(command)
                await server.settled()  # what was asked for is so before the answer says it
            except (ValueError, TypeError) as mistake:
                answer = {"error": str(mistake)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    from campaigns.demo.smtp_command import main

    main()
