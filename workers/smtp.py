"""SMTP connections: opened with aiosmtplib, then spoken to with our own eyes on every byte.

This module alone imports aiosmtplib.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import aiosmtplib

from campaigns.errors import CampaignsError
from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop, redact
from workers.deadlines import Deadlines
from workers.dialogue import Dialogue
from workers.envelope import Envelope
from workers.host import Host
from workers.transaction import STALE, Transaction
from workers.wait import Wait

if TYPE_CHECKING:
    from campaigns.settings import Server

__all__ = ["STALE", "Envelope", "SmtpConnection", "SmtpFailure"]

_HOST_NAME = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_MOST_AGE_SECONDS = 300.0
_QUIT_SECONDS = 2.0
_KEEPALIVE_SECONDS = 60


class SmtpFailure(CampaignsError):  # noqa: N818 - it says what happened
    """A connection could not be opened. `result` says in which phase, and why."""

    def __init__(self, result: SmtpResult) -> None:
        said = result.reply or result.detail or result.fault or result.stop
        super().__init__(f"{result.phase}: {said}")
        self.result = result


class SmtpConnection:
    """One open connection: greeted, secured and authenticated. Never used by two at once."""

    def __init__(
        self,
        *,
        name: str,
        dialogue: Dialogue,
        extensions: dict[str, str],
        deadlines: Deadlines,
        most_messages: int,
    ) -> None:
        self.messages_sent = 0
        self.is_at_dot = False
        self._name = name
        self._dialogue = dialogue
        self._extensions = extensions
        self._deadlines = deadlines
        self._most_messages = most_messages
        self._needs_reset = False
        self._expires_at = time.monotonic() + _MOST_AGE_SECONDS

    @classmethod
    async def open(
        cls,
        server: Server,
        deadlines: Deadlines,
        local_hostname: str | None = None,
        *,
        wait: Wait | None = None,
        host: Host | None = None,
    ) -> SmtpConnection:
        """Connect, greet, secure, authenticate. Raises SmtpFailure.

        `local_hostname`: what EHLO says; left out, this machine's name, or its address if that has no domain.
        `wait` is told what is waited for. `host`: the server's, so that all its connections share a lookup.
        """
        host = host or Host(server.host, server.port)
        opening = _Opening(server, deadlines, local_hostname, wait or Wait(), host)
        client = await opening.run()
        transport = cast(asyncio.Transport, client.transport)
        _tune(transport, deadlines)
        return cls(
            name=server.name,
            dialogue=Dialogue(transport, asyncio.get_running_loop()),
            extensions=dict(client.esmtp_extensions),
            deadlines=deadlines,
            most_messages=server.max_messages_per_connection,
        )

    def __repr__(self) -> str:
        state = "at the dot" if self.is_at_dot else "open" if self.is_usable else "closed"
        return f"<SmtpConnection {self._name}: {state}, {self.messages_sent} messages>"

    def tell(self, wait: Wait) -> None:
        """Have `wait` told what is waited for from now on: it is another mail's turn."""
        self._dialogue.wait = wait

    @property
    def is_usable(self) -> bool:
        """Open, and the server has said nothing unasked; one that hung up while idle is not."""
        return not self._dialogue.was_interrupted and not self._dialogue.has_unread

    def has_expired(self, now: float) -> bool:
        """Old enough, or used often enough, to be replaced. `now`: `time.monotonic()`."""
        return now >= self._expires_at or self.messages_sent >= self._most_messages

    def supports(self, extension: str) -> bool:
        """True if the server's EHLO announced it (any case)."""
        return extension.lower() in self._extensions

    async def send(
        self,
        envelope: Envelope,
        body: bytes,
        commit_point: Callable[[], Awaitable[Stop | None]],
        lease_valid: Callable[[], bool],
        on_dot: Callable[[], None],
    ) -> SmtpResult:
        """Send one mail; the dot only if `commit_point` says go, the lease holds and the server kept quiet.

        `body`: any bytes; line ends and dots are taken care of. `commit_point` returns None for go. `on_dot`
        is called immediately before the dot is written: whoever is cancelled after that does not know whether
        the mail was taken. What the server does is in the result; cancellation and what the callbacks raise
        come out as exceptions, and then the connection is aborted.
        """
        transaction = Transaction(
            self._dialogue,
            self._extensions,
            self._deadlines,
            is_reused=self.messages_sent > 0,
            needs_reset=self._needs_reset,
        )
        self.messages_sent += 1

        def at_dot() -> None:
            on_dot()
            self.is_at_dot = True

        try:
            result = await transaction.run(envelope, body, commit_point, lease_valid, at_dot)
        except BaseException:
            self.abort()
            raise
        finally:
            self.is_at_dot = False
        self._needs_reset = transaction.needs_reset
        return result

    def abort(self) -> None:
        """Drop the connection at once. A mail before its dot is thrown away by the server."""
        self._dialogue.abort()

    async def close(self) -> None:
        """Say QUIT if the connection is still good, wait briefly for the answer, and close."""
        if not self.is_usable:
            self.abort()
            return
        self._dialogue.write(b"QUIT\r\n")
        await self._dialogue.reply(_QUIT_SECONDS)
        self._dialogue.close()


class _Opening:
    """The steps up to a connection that takes mail; `phase` says which one it is at."""

    def __init__(
        self, server: Server, deadlines: Deadlines, local_hostname: str | None, wait: Wait, host: Host
    ) -> None:
        self.phase = Phase.CONNECT
        self._wait = wait
        self._host = host
        self._server = server
        self._deadlines = deadlines
        self._hostname = local_hostname or _machine_name()

    async def run(self) -> aiosmtplib.SMTP:
        """The connected client. Raises SmtpFailure."""
        client: aiosmtplib.SMTP | None = None
        try:
            client = self._client()
            await self._steps(client)
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            _drop(client)
            raise SmtpFailure(_failure(self.phase, error)) from error
        except BaseException:
            _drop(client)
            raise
        finally:
            self._wait.end()
        return client

    def _begin(self, phase: Phase) -> None:
        self.phase = phase
        self._wait.begin(phase)

    def _client(self) -> aiosmtplib.SMTP:
        server = self._server
        return aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            timeout=self._deadlines.command_seconds,
            use_tls=server.tls == "implicit",
            start_tls=False,
            tls_context=None if server.tls == "none" else _tls_context(server.ca_file),
            local_hostname=self._hostname or "localhost",
        )

    async def _steps(self, client: aiosmtplib.SMTP) -> None:
        self._begin(Phase.CONNECT)
        await self._connect(client)
        await self._greet(client)
        if self._server.tls == "starttls":
            self._begin(Phase.STARTTLS)
            if not client.supports_extension("starttls"):
                raise _Refusal(Fault.TLS, "the server does not offer STARTTLS")
            await client.starttls(timeout=self._deadlines.command_seconds)
            await self._greet(client)
        if self._server.username:
            self._begin(Phase.AUTH)
            await self._authenticate(client)

    async def _connect(self, client: aiosmtplib.SMTP) -> None:
        """The name that a certificate must have is the server's, whatever address it has."""
        seconds = self._deadlines.connect_seconds
        if self._host.is_literal:
            await client.connect(timeout=seconds)
        else:
            await client.connect(timeout=seconds, port=None, sock=await self._host.connect(seconds))

    async def _greet(self, client: aiosmtplib.SMTP) -> None:
        self._begin(Phase.EHLO)
        address = client.get_transport_info("sockname")
        await client.ehlo(hostname=self._hostname or _address_literal(address))

    async def _authenticate(self, client: aiosmtplib.SMTP) -> None:
        """With one method only: `login()` would try them all, and so lock the account three times as fast."""
        if client.get_transport_info("sslcontext") is None and not _is_loopback(client):
            raise _Refusal(Fault.TLS, "AUTH never goes over plain text to another machine: set tls")
        password = self._server.password.get_secret_value() if self._server.password else ""
        methods = {"plain": client.auth_plain, "login": client.auth_login, "cram-md5": client.auth_crammd5}
        for name, authenticate in methods.items():
            if name in client.server_auth_methods:
                await authenticate(self._server.username, password)
                return
        raise _Refusal(Fault.REFUSED, "the server offers none of AUTH PLAIN, LOGIN and CRAM-MD5")


class _Refusal(aiosmtplib.SMTPException):
    """We refuse to go on with this server."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def _failure(phase: Phase, error: Exception) -> SmtpResult:
    """What went wrong while opening, as a value."""
    cause = error.__cause__ if isinstance(error, aiosmtplib.SMTPConnectError) else error
    if isinstance(error, aiosmtplib.SMTPConnectResponseError) or isinstance(cause, aiosmtplib.SMTPException):
        phase = Phase.GREETING if phase is Phase.CONNECT else phase
    if isinstance(error, aiosmtplib.SMTPResponseException) and 400 <= error.code <= 599:
        text = error.message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        reply = Reply.parse(error.code, text)
        return SmtpResult(phase=phase, reply=reply, fault=None, dot_sent=False, stop=None)
    fault = _fault(error, cause or error)
    return SmtpResult(
        phase=phase, reply=None, fault=fault, dot_sent=False, stop=None, detail=_detail(error, cause)
    )


def _fault(error: Exception, cause: BaseException) -> Fault:
    if isinstance(error, _Refusal):
        return error.fault
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return Fault.OVERSIZED if error.message == "Response too long" else Fault.GARBAGE
    kinds: tuple[tuple[type[BaseException], Fault], ...] = (
        (ssl.SSLError, Fault.TLS),
        (ssl.CertificateError, Fault.TLS),
        (socket.gaierror, Fault.DNS),
        (TimeoutError, Fault.TIMEOUT),
        (aiosmtplib.SMTPServerDisconnected, Fault.CLOSED),
        (ConnectionResetError, Fault.CLOSED),
        (ConnectionAbortedError, Fault.CLOSED),
        (ValueError, Fault.GARBAGE),
    )
    return next((fault for kind, fault in kinds if isinstance(cause, kind)), Fault.REFUSED)


def _detail(error: Exception, cause: BaseException | None) -> str:
    """In the system's own words where it has some, once; the server's address is told elsewhere."""
    if isinstance(cause, ConnectionError) and cause.errno is not None:
        return os.strerror(cause.errno)
    if isinstance(cause, socket.gaierror) and cause.strerror:
        return cause.strerror
    text = error.message if isinstance(error, aiosmtplib.SMTPException) else str(error)
    return redact(str(text))


def _drop(client: aiosmtplib.SMTP | None) -> None:
    if client is not None and client.transport is not None:
        cast(asyncio.Transport, client.transport).abort()


def _is_loopback(client: aiosmtplib.SMTP) -> bool:
    peer = client.get_transport_info("peername")
    return ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback


@lru_cache
def _machine_name() -> str:
    """This machine's name if it has a domain; "" otherwise. DNS is not asked."""
    name = socket.gethostname()
    return name if _HOST_NAME.fullmatch(name) else ""


def _address_literal(sockname: tuple[str, int]) -> str:
    """Our own address as RFC 5321 4.1.3 writes it."""
    address = ipaddress.ip_address(sockname[0].partition("%")[0])
    return f"[{address}]" if address.version == 4 else f"[IPv6:{address}]"


@lru_cache
def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Verifies names and certificates, by `ca_file` or the system's authorities. Made once: that is slow."""
    return ssl.create_default_context(cafile=ca_file)


def _tune(transport: asyncio.Transport, deadlines: Deadlines) -> None:
    """Small writes go at once; a network that swallows bytes, or a peer that is gone, is noticed."""
    connection = transport.get_extra_info("socket")
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", int(max(deadlines.body_seconds, deadlines.dot_seconds) * 1000)),
        ("TCP_KEEPIDLE", _KEEPALIVE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_SECONDS // 4),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
