"""What an SMTP server said, and how far a mail came. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Fault", "Phase", "Reply", "SmtpResult", "Stop", "redact"]


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
    """The mail needs SMTPUTF8, and the server does not offer it."""
    SIZE = "size"
    """The mail is larger than the SIZE that the server announced."""
    RENDER = "render"
    """The mail could not be made from its template."""
    INTERNAL = "internal"
    """An error of our own that nobody expected."""


class Stop(StrEnum):
    """Why we ourselves ended an attempt before the dot."""

    FENCED = "fenced"
    DATABASE = "database"
    LEASE = "lease"
    SHUTDOWN = "shutdown"
    PAUSED = "paused"


_ENHANCED = re.compile(r"[\s#(\[]{0,3}([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply: its code, the enhanced status code (RFC 3463) if it has one, its lines of text."""

    code: int
    enhanced: str | None = None
    text: str = ""

    @classmethod
    def parse(cls, code: int, text: str) -> Reply:
        """Read the enhanced status code that begins `text`, unless it is of another class (RFC 2034)."""
        found = _ENHANCED.match(text)
        if found is None or int(found[1]) != code // 100:
            return cls(code=code, text=text)
        return cls(code=code, enhanced=f"{found[1]}.{int(found[2])}.{int(found[3])}", text=text)

    @property
    def is_positive(self) -> bool:
        """A 2yz: done."""
        return 200 <= self.code < 300

    @property
    def is_refusal(self) -> bool:
        """A 4yz or a 5yz: not done, for now or for good."""
        return 400 <= self.code < 600

    def __str__(self) -> str:
        """As it may be stored and shown: one line, bounded, no addresses."""
        return redact(f"{self.code} {self.text}")


@dataclass(frozen=True, kw_only=True)
class SmtpResult:
    """How one attempt to hand over one mail ended. `dot_sent`: the final dot was given to the transport."""

    phase: Phase
    reply: Reply | None = None
    fault: Fault | None = None
    dot_sent: bool = False
    stop: Stop | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """The server took the mail: a 2yz reply to the final dot, and nothing less (RFC 5321 4.2.5)."""
        answered = self.phase is Phase.DOT and self.dot_sent and self.fault is None
        return answered and self.reply is not None and self.reply.is_positive


_ADDRESS = "<address>"
_MOST_READ = 4_000
_MOST_KEPT = 500
_SHORTEST_NAME = 3
_AT = r"(?:@|\uFF20|\uFE6B|%40|=40|&#0*64;|&#x0*40;|&commat;|\(at\)|\[at\])"
_QUOTED = re.compile(rf'"(?:\\.|[^"\\]){{1,256}}"(?=\s?{_AT})', re.IGNORECASE)
_SIGN = re.compile(rf"\s?{_AT}\s?", re.IGNORECASE)
_TOKEN = re.compile(r"[^\s<>,;\"()]*@(?:\[[^\]\s]{0,80}\])?[^\s<>,;\"()]*")
_NESTED = re.compile(rf"<?{_ADDRESS}>+")


def redact(text: str, *, known: Iterable[str] = ()) -> str:
    """Make a reply fit for the database, events and logs: one line of at most 500 characters, no addresses.

    Control characters, NUL, surrogates and invisible characters go; an address in any spelling (quoted,
    encoded, internationalised) becomes `<address>`. `known`: addresses whose local part is hidden alone too.
    """
    line = _one_line(text[:_MOST_READ])
    if len(text) > _MOST_READ:
        line = line.rpartition(" ")[0]  # its last word may be half an address
    line = _SIGN.sub("@", _QUOTED.sub("quoted", line))
    line = _NESTED.sub(_ADDRESS, _TOKEN.sub(_ADDRESS, line))
    for address in known:
        line = _without_local_part(line, address)
    return line if len(line) <= _MOST_KEPT else line[: _MOST_KEPT - 1] + "…"


def _one_line(text: str) -> str:
    plain = text if text.isascii() and text.isprintable() else "".join(map(_visible, text))
    return " ".join(plain.split())


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in {"Cc", "Zl", "Zp", "Zs"}:
        return " "
    return "" if category in {"Cf", "Cs", "Co", "Cn"} else character


def _without_local_part(line: str, address: str) -> str:
    name = _one_line(address).rpartition("@")[0].strip('"')
    if len(name) < _SHORTEST_NAME:
        return line
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", _ADDRESS, line, flags=re.IGNORECASE)
