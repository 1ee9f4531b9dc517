"""The parts of a body, in encodings that every server takes: 7 bits, lines of at most 998 octets."""

import binascii
import re
from base64 import encodebytes
from collections.abc import Sequence

from campaigns.errors import MessageError

__all__ = ["alternative", "ended", "part"]

_LONG_LINE = re.compile(rb"[^\n]{990}")
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|[ \t]\r|\nFrom |\r\n\\.\r\n")
_LINE_END = re.compile("\r\n|\r|\n")
_MANY_FOREIGN = 0.2


def part(text: str, subtype: str, boundary: str) -> bytes:
    """Return a text part: its Content- fields, an empty line, and the text in the encoding that suits it.

    7bit for plain ASCII; quoted-printable (RFC 2045 6.7) where most is ASCII, and for what would not travel
    well (long lines, trailing blanks, control characters, the boundary); base64 for other scripts. Raises
    MessageError for what is no Unicode text.
    """
    text = _LINE_END.sub("\r\n", text)
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
    plain = text.isascii() and boundary not in text and not _NOT_TEXT.search(text)
    if plain and not _LONG_LINE.search(octets):
        return "7bit", octets
    return "quoted-printable", binascii.b2a_qp(octets, istext=True)


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
