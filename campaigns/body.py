"""The parts of a body, in encodings that every server takes: 7 bits, lines of at most 998 octets."""

import binascii
from base64 import encodebytes
from collections.abc import Sequence
from functools import lru_cache

from campaigns.errors import MessageError

__all__ = ["alternative", "ended", "part"]

_CONTROL = bytes(code for code in range(128) if (code < 32 and code not in b"\t\r\n") or code == 127)
_FRAGILE = (" \r\n", "\t\r\n", "\r\nFrom ", "\r\n.\r\n")
_MANY_FOREIGN = 0.2
_CACHED_LINE = 2000
_LONGEST_LINE = 998


def part(text: str, subtype: str, boundary: str) -> bytes:
    """Return a text part: its Content- fields, an empty line, and the text in the encoding that suits it.

    7bit for plain ASCII; quoted-printable (RFC 2045 6.7) where most is ASCII, and for what would not travel
    well (long lines, trailing blanks, control characters, the boundary); base64 for other scripts. Raises
    MessageError for what is no Unicode text.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace("\n", "\r\n")
    try:
        octets = text.encode()
    except UnicodeEncodeError as error:
        raise MessageError(f"The {subtype} part holds a lone surrogate. Correct the field.") from error
    encoding, encoded = _encoded(text, octets, boundary)
    fields = f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return fields.encode() + encoded


def _encoded(text: str, octets: bytes, boundary: str) -> tuple[str, bytes]:
    if len(octets) - len(text) > _MANY_FOREIGN * len(octets):
        return "base64", encodebytes(octets).replace(b"\n", b"\r\n")
    if text.isascii() and boundary not in text and _travels(text, octets):
        return "7bit", octets
    return "quoted-printable", _quoted(octets.split(b"\r\n"))


def _travels(text: str, octets: bytes) -> bool:
    """Tell whether ASCII text arrives as it is: mailers cut blanks, quote `From `, and choke on controls."""
    framed = f"\r\n{text}\r\n"
    return (
        not any(fragile in framed for fragile in _FRAGILE)
        and len(octets.translate(None, _CONTROL)) == len(octets)
        and max(map(len, octets.split(b"\r\n"))) <= _LONGEST_LINE
    )


def _quoted(lines: list[bytes]) -> bytes:
    """Most lines are the same in every mail of a campaign, so that they are kept, encoded."""
    short = max(map(len, lines)) <= _CACHED_LINE
    return b"\r\n".join(map(_kept_line if short else _quoted_line, lines))


def _quoted_line(line: bytes) -> bytes:
    return binascii.b2a_qp(line).replace(b"\n", b"\r\n")


_kept_line = lru_cache(maxsize=4096)(_quoted_line)


def alternative(parts: Sequence[bytes], boundary: str) -> bytes:
    """Return a multipart/alternative body with its Content-Type; the last part is the preferred one.

    The boundary begins with `=_`, which occurs neither in quoted-printable nor in base64 (RFC 2045 6.7);
    a part in 7bit does not hold it (`part` sees to that).
    """
    line = f"--{boundary}".encode()
    pieces = [f'Content-Type: multipart/alternative; boundary="{boundary}"\r\n\r\n'.encode()]
    for one in parts:
        pieces += [line, b"\r\n", one, b"\r\n"]
    return b"".join([*pieces, line, b"--\r\n"])


def ended(content: bytes) -> bytes:
    """Return the content with a line end at its end."""
    return content if content.endswith(b"\r\n") else content + b"\r\n"
