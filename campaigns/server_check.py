"""Tries a mail server without sending anything: connect, greeting, EHLO, TLS, login."""

from __future__ import annotations

import smtplib
import socket
import ssl

from campaigns.reply import redact
from campaigns.server import Server

CHECK_SECONDS = 10.0


def check_server(server: Server, *, timeout_seconds: float = CHECK_SECONDS) -> tuple[bool, str]:
    """Whether it can be used as configured, and what was found or what went wrong, in one line.

    Certificates are verified. AUTH is tried only where a user name is configured.
    """
    step = "connect"
    try:
        with _connected(server, timeout_seconds) as client:
            step = "EHLO"
            client.ehlo_or_helo_if_needed()
            if server.tls == "starttls":
                step = "STARTTLS"
                client.starttls(context=_tls_context(server))
                client.ehlo()
            if server.username and server.password is not None:
                step = "AUTH"
                client.login(server.username, server.password.get_secret_value())
            return True, _found(server, client)
    except (OSError, smtplib.SMTPException, ssl.SSLError, ValueError) as error:
        return False, f"{server.host}:{server.port}: {step}: {_reason(error)}"


def _connected(server: Server, timeout_seconds: float) -> smtplib.SMTP:
    if server.tls == "implicit":
        return smtplib.SMTP_SSL(
            server.host, server.port, timeout=timeout_seconds, context=_tls_context(server)
        )
    return smtplib.SMTP(server.host, server.port, timeout=timeout_seconds)


def _tls_context(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.ca_file) if server.ca_file else None)


def _found(server: Server, client: smtplib.SMTP) -> str:
    version = client.sock.version() if isinstance(client.sock, ssl.SSLSocket) else None
    parts = [f"{server.host}:{server.port}", version or "no TLS"]
    if server.username:
        parts.append("logged in")
    extensions = [name.upper() for name in ("size", "smtputf8", "pipelining") if client.has_extn(name)]
    return ", ".join([*parts, *extensions])


def _reason(error: Exception) -> str:
    """The error in one line, without what a server may quote of us."""
    match error:
        case smtplib.SMTPResponseException():
            raw = error.smtp_error
            text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
            return f"{error.smtp_code} {redact(text)}"
        case ssl.SSLCertVerificationError():
            return f"the certificate is not trusted: {error.verify_message}; see ca_file"
        case TimeoutError() | smtplib.SMTPServerDisconnected() if "timed out" in str(error):
            return "no answer in time"
        case socket.gaierror():
            return "the name cannot be resolved"
        case OSError() if error.strerror:
            return error.strerror
    return redact(str(error)) or type(error).__name__
