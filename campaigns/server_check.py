"""Tries a mail server without sending anything: connect, greeting, EHLO, TLS, login, NOOP, QUIT."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from campaigns.reply import redact
from campaigns.server import Server

__all__ = ["CHECK_SECONDS", "ServerCheck", "check_server"]

CHECK_SECONDS = 10.0
WHOLE_CHECK = 3.0
"""So many times the deadline of one step is that of all steps: also a server that drips is given up."""

_MISSING_EXTENSIONS = {
    "STARTTLS": 'Use smtps:// if it speaks TLS from the first byte; tls = "none" sends without TLS.',
    "AUTH": "Leave username out, or use TLS: many servers let nobody log in without it.",
}


@dataclass(frozen=True, kw_only=True)
class ServerCheck:
    """Whether a server can be used as configured, and in `detail` what was found or what went wrong.

    `latency_seconds`: from the connect to the reply to NOOP. `certificate_until`: epoch seconds, where there
    was TLS.
    """

    ok: bool
    detail: str
    latency_seconds: float | None = None
    certificate_until: float | None = None


def check_server(server: Server, *, timeout_seconds: float = CHECK_SECONDS) -> ServerCheck:
    """Try it; no step may take longer than `timeout_seconds`, and all together not three times as long.

    Certificates are verified. AUTH is tried only where a user name is configured.
    """
    trial = _Trial(server, timeout_seconds)
    try:
        return trial.run()
    except (OSError, smtplib.SMTPException, ssl.SSLError, ValueError) as error:
        reason = "no answer in time" if trial.is_over else _reason(error, trial.step)
        return ServerCheck(ok=False, detail=f"{server.host}:{server.port}: {trial.step}: {reason}")


class _Trial:
    """One conversation with a server, and how far it has come."""

    def __init__(self, server: Server, timeout_seconds: float) -> None:
        self.server, self.timeout_seconds = server, timeout_seconds
        self.step = "connect"
        self.is_over = False

    def run(self) -> ServerCheck:
        started = time.monotonic()
        with self._connected() as client:
            self.step = "EHLO"
            client.ehlo_or_helo_if_needed()
            if self.server.tls == "starttls":
                self.step = "STARTTLS"
                client.starttls(context=_tls_context(self.server))
                client.ehlo()
            if self.server.username and self.server.password is not None:
                self.step = "AUTH"
                client.login(self.server.username, self.server.password.get_secret_value())
            self.step = "NOOP"
            self._expect(250, client.noop())
            latency_seconds = time.monotonic() - started
            found = _found(self.server, client), _certificate_until(client)
            with suppress(OSError, smtplib.SMTPException):  # many just hang up, and may
                client.quit()
        return ServerCheck(
            ok=True, detail=found[0], latency_seconds=latency_seconds, certificate_until=found[1]
        )

    @contextmanager
    def _connected(self) -> Iterator[smtplib.SMTP]:
        """Connected and greeted; cut off when all steps together have taken too long."""
        client = self._client()
        deadline = threading.Timer(WHOLE_CHECK * self.timeout_seconds, self._cut, (client,))
        deadline.daemon = True
        deadline.start()
        try:
            self._expect(220, client.connect(self.server.host, self.server.port))
            client.local_hostname = _own_name(client)
            yield client
        finally:
            deadline.cancel()
            client.close()

    def _client(self) -> smtplib.SMTP:
        """Not connected yet, so that the deadline holds for the greeting, too."""
        options: dict[str, Any] = {"local_hostname": "localhost", "timeout": self.timeout_seconds}
        client = (
            smtplib.SMTP_SSL(**options, context=_tls_context(self.server))
            if self.server.tls == "implicit"
            else smtplib.SMTP(**options)
        )
        # The name that the certificate must have; only a client that connects when it is made sets it itself.
        client._host = self.server.host  # type: ignore[attr-defined]
        return client

    def _expect(self, code: int, answer: tuple[int, bytes]) -> None:
        """Raises an error unless the server answered with this code, and not by half because it was cut."""
        if self.is_over:
            raise TimeoutError
        if answer[0] != code:
            raise smtplib.SMTPResponseException(*answer)

    def _cut(self, client: smtplib.SMTP) -> None:
        self.is_over = True
        with suppress(OSError, AttributeError):
            client.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]


def _own_name(client: smtplib.SMTP) -> str:
    """As the workers say EHLO: this machine's name if it has a domain, or its address. DNS is not asked."""
    name = socket.gethostname()
    assert client.sock is not None
    address = str(client.sock.getsockname()[0]).partition("%")[0]
    return name if "." in name else f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _tls_context(server: Server) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(server.ca_file) if server.ca_file else None)
    except OSError as error:
        if server.ca_file is None:
            raise
        why = "is no file of certificates in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(f"ca_file: {server.ca_file}: {why}") from error


def _certificate_until(client: smtplib.SMTP) -> float | None:
    certificate = client.sock.getpeercert() if isinstance(client.sock, ssl.SSLSocket) else None
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"]))) if certificate else None


def _found(server: Server, client: smtplib.SMTP) -> str:
    version = client.sock.version() if isinstance(client.sock, ssl.SSLSocket) else None
    parts = [f"{server.host}:{server.port}", version or "no TLS"]
    if server.username:
        parts.append("logged in")
    extensions = [name.upper() for name in ("size", "smtputf8", "pipelining") if client.has_extn(name)]
    return ", ".join([*parts, *extensions])


def _reason(error: Exception, step: str) -> str:
    """The error in one line, without what a server may quote of us."""
    match error:
        case smtplib.SMTPResponseException():
            raw = error.smtp_error
            text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
            return f"{error.smtp_code} {redact(text)}"
        case ssl.SSLError() | smtplib.SMTPNotSupportedError():
            return _mismatch(error, step)
        case TimeoutError() | smtplib.SMTPServerDisconnected() if "timed out" in str(error):
            return "no answer in time"
        case socket.gaierror():
            return "the name cannot be resolved"
        case OSError() if error.strerror:
            return error.strerror
    return redact(str(error)) or type(error).__name__


def _mismatch(error: ssl.SSLError | smtplib.SMTPNotSupportedError, step: str) -> str:
    """What the server does otherwise than configured, with the remedy."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the certificate is not trusted: {error.verify_message}; see ca_file"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return "the server does not speak TLS from the first byte; smtp:// instead of smtps:// is meant?"
        case smtplib.SMTPNotSupportedError():
            return f"{error} {_MISSING_EXTENSIONS.get(step, '')}".strip()
    return redact(error.strerror or str(error)) or type(error).__name__
