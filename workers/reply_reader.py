"""SMTP replies out of a stream of bytes, strictly: what is not well formed is never a reply."""

from __future__ import annotations

import re
from typing import NamedTuple

from campaigns.reply import Fault

__all__ = ["MOST_LINE_OCTETS", "MOST_REPLY_OCTETS", "RawReply", "ReplyReader"]

MOST_LINE_OCTETS = 2000
"""RFC 5321 4.5.3.1.5 allows 512; servers that paste a policy's text into a line are let through."""
MOST_REPLY_OCTETS = 16_384

# RFC 5321 4.2, which has a lone "250" accepted too. The second digit is not held to 0-5: servers answer 571.
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r]*))?\r?\Z")


class RawReply(NamedTuple):
    """A well-formed reply: all its lines had the same code; `text` joins them with newlines."""

    code: int
    text: str


class ReplyReader:
    """Feed it what arrives, take whole replies from it. No I/O.

    A fault is for good: where one reply is broken, nothing after it can be trusted.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._code: bytes | None = None
        self._lines: list[bytes] = []
        self._octets = 0
        self._has_gap = False
        self._fault: Fault | None = None

    @property
    def has_bytes(self) -> bool:
        """True if the server said something that was not taken yet, be it half a line."""
        return bool(self._buffer or self._lines or self._has_gap or self._fault)

    def feed(self, data: bytes) -> None:
        """Add what arrived. Beyond the limit nothing is kept: a server cannot fill the memory.

        And nothing after that: half a line from before a gap and half of one from behind it are no reply.
        """
        self._has_gap = self._has_gap or len(self._buffer) > MOST_REPLY_OCTETS
        if not self._has_gap:
            self._buffer += data

    def take(self) -> RawReply | Fault | None:
        """The next reply; a fault (GARBAGE, OVERSIZED); None while it is incomplete."""
        while self._fault is None:
            end = self._buffer.find(b"\n")
            if max(end, 0) > MOST_LINE_OCTETS or (end < 0 and len(self._buffer) > MOST_LINE_OCTETS):
                self._fault = Fault.OVERSIZED
                break
            if end < 0 and self._has_gap:
                self._fault = Fault.OVERSIZED
                break
            if end < 0:
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if (reply := self._line(line)) is not None:
                return reply
        return self._fault

    def _line(self, line: bytes) -> RawReply | None:
        found = _LINE.match(line)
        self._octets += len(line)
        if found is None or (self._code is not None and found[1] != self._code):
            self._fault = Fault.GARBAGE
        elif self._octets > MOST_REPLY_OCTETS:
            self._fault = Fault.OVERSIZED
        else:
            self._lines.append(found[3] or b"")
            self._code = found[1]
            return None if found[2] == b"-" else self._finish()
        return None

    def _finish(self) -> RawReply:
        code, lines = int(self._code or b"0"), self._lines
        self._code, self._lines, self._octets = None, [], 0
        return RawReply(code, b"\n".join(lines).decode("utf-8", "replace"))
