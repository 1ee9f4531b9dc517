"""What an SMTP server said, and how far a mail came. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "Phase", "Reply", "SmtpResult", "Stop"]

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s|$)")


class Phase(StrEnum):
    """Where in the SMTP dialogue an attempt ended."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"
    COMMIT = "commit"
    DOT = "dot"


class Fault(StrEnum):
    """What went wrong where no well-formed reply says it."""

    REFUSED = "refused"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    TLS = "tls"
    DNS = "dns"
    GARBAGE = "garbage"
    OVERSIZED = "oversized"
    UTF8 = "utf8"
    SIZE = "size"
    RENDER = "render"


class Stop(StrEnum):
    """Why we ourselves ended an attempt before the dot."""

    FENCED = "fenced"
    DATABASE = "database"
    LEASE = "lease"
    SHUTDOWN = "shutdown"
    PAUSED = "paused"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One well-formed reply: its code, the enhanced status code (RFC 3463) if it has one, its text."""

    code: int
    enhanced: str | None
    text: str

    @classmethod
    def parse(cls, code: int, text: str) -> Reply:
        """Read the enhanced status code from the beginning of `text`."""
        found = _ENHANCED.match(text)
        return cls(code=code, enhanced=found[1] if found else None, text=text)


@dataclass(frozen=True, kw_only=True)
class SmtpResult:
    """How one attempt to hand over one mail ended. `dot_sent`: the final dot was given to the transport."""

    phase: Phase
    reply: Reply | None
    fault: Fault | None
    dot_sent: bool
    stop: Stop | None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """The server took the mail: a 2yz reply to the final dot."""
        return self.phase is Phase.DOT and self.reply is not None and 200 <= self.reply.code < 300
