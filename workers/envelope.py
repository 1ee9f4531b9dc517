"""Who a mail is from and for, and how that goes over the wire. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Envelope", "normalised_body", "stuffed_body"]

# A path has at most 256 octets, its brackets among them (RFC 5321 4.5.3.1.3).
_MOST_PATH_OCTETS = 254
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f<>]")
_BARE_ENDS = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Addresses as MAIL and RCPT say them, without brackets.

    `smtputf8`: the mail needs that extension (RFC 6531).
    """

    sender: str
    recipient: str
    smtputf8: bool = False

    @property
    def mistake(self) -> str | None:
        """Why these addresses must not go over the wire, or None. An empty sender is the null path."""
        if not self.recipient:
            return "the recipient is empty"
        return self._mistake_in("sender", self.sender) or self._mistake_in("recipient", self.recipient)

    def _mistake_in(self, which: str, address: str) -> str | None:
        if _FORBIDDEN.search(address):
            return f"the {which} has a control character or an angle bracket in it"
        if not self.smtputf8 and not address.isascii():
            return f"the {which} is not ASCII, and the mail was not made for SMTPUTF8"
        try:
            octets = address.encode()
        except UnicodeEncodeError:
            return f"the {which} is not valid Unicode"
        return (
            None
            if len(octets) <= _MOST_PATH_OCTETS
            else f"the {which} is longer than {_MOST_PATH_OCTETS} octets"
        )

    def mail_command(self, parameters: str) -> bytes:
        """MAIL with its parameters (RFC 5321 4.1.1.2), ended with CRLF."""
        return f"MAIL FROM:<{self.sender}>{parameters}\r\n".encode()

    def rcpt_command(self) -> bytes:
        """RCPT (RFC 5321 4.1.1.3), ended with CRLF."""
        return f"RCPT TO:<{self.recipient}>\r\n".encode()


def normalised_body(body: bytes) -> bytes:
    """Every line ended with CRLF, the last one too; a bare CR or LF counts as the end of a line.

    A bare one that a server takes for the end of a line is how mails are smuggled (RFC 5321 2.3.8).
    """
    pairs = body.count(b"\r\n")
    if body.count(b"\n") != pairs or body.count(b"\r") != pairs:
        body = _BARE_ENDS.sub(b"\r\n", body)
    return body if body.endswith(b"\r\n") else body + b"\r\n"


def stuffed_body(body: bytes) -> bytes:
    """A normalised body with one more dot before each line that begins with one (RFC 5321 4.5.2)."""
    body = body.replace(b"\r\n.", b"\r\n..")
    return b"." + body if body.startswith(b".") else body
