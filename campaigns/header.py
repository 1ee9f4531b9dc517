"""Header fields of a message: what may stand in them, and how it is encoded (RFC 5322, 2047, 6532)."""

import base64
import codecs
import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from urllib.parse import quote

from campaigns.address import Address, normalise
from campaigns.errors import InvalidAddress, MessageError

__all__ = ["Mailbox", "checked_value", "custom_name", "header_names", "unstructured", "unsubscribe"]

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LINE = 76
_LONGEST_LINE = 998
_LONGEST_VALUE = 10_000
_WORD_BYTES = 45
_ENCODED_WORD = re.compile(r"=\?[^?]*\?[bq]\?[^?]*\?=", re.IGNORECASE)
# Python's own, which no mail is written in: they warn, fail or take long on what strangers make of them.
_NO_CHARSETS = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,75}")
_CUSTOM = {
    *("precedence", "auto-submitted", "feedback-id", "organization", "keywords", "comments", "importance"),
    *("priority", "sensitivity", "content-language", "list-id", "list-help", "list-owner", "list-post"),
    *("list-subscribe", "list-archive", "archived-at"),
}
_ATEXT_WORDS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~ ]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LONGEST_NAME = 300
_ANGLE = re.compile(r"(.*?)\s*<([^<>]*)>")
_ONE_CLICK = b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
_LONGEST_URI = _LONGEST_LINE - len("List-Unsubscribe: <>,")
_URI = re.compile(r"(https?://|mailto:)[!-;=?-~]+", re.IGNORECASE)


def checked_value(name: str, value: str) -> str:
    """Return the value without surrounding blanks. Raises MessageError if it could break out of its field.

    Refused are control characters, line separators and lone surrogates: as they stand, and after decoding
    encoded words (RFC 2047), which receivers do before they look. (No other character normalises to these.)
    """
    value = value.strip(" ")
    _refuse_control(name, value)
    if len(value) > _LONGEST_VALUE:
        raise MessageError(f"The {name} header is too long: {len(value)} characters.")
    if "=?" in value:
        _refuse_control(name, _decoded(value))
    return value


def _refuse_control(name: str, value: str) -> None:
    found = _FORBIDDEN.search(value)
    if found:
        raise MessageError(
            f"The {name} header would hold the character U+{ord(found[0]):04X}. Take line breaks and control"
            " characters out of the template and of the recipient's fields."
        )


def _decoded(value: str) -> str:
    """All that a receiver may read: the encoded words together, and each one for itself."""
    return "".join(map(_decoded_words, [value, *_ENCODED_WORD.findall(value)]))


def _decoded_words(value: str) -> str:
    try:
        chunks = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(_decoded_chunk(chunk, charset or "latin-1") for chunk, charset in chunks)


def _decoded_chunk(chunk: str | bytes, charset: str) -> str:
    if isinstance(chunk, str):
        return chunk
    try:
        known = codecs.lookup(charset).name.replace("_", "-")
        return chunk.decode("latin-1" if known in _NO_CHARSETS else charset, "replace")
    except (LookupError, ValueError):
        return chunk.decode("latin-1")


def unstructured(name: str, value: str) -> bytes:
    """Return the whole field, folded, in ASCII, ended with CRLF; `value` comes from `checked_value`.

    What looks like an encoded word is itself encoded, so that it is shown and not decoded.
    """
    if value.isascii() and "=?" not in value:
        lines = _folded(f"{name}:", value)
        if max(map(len, lines)) <= _LONGEST_LINE:
            return "\r\n".join(lines).encode("ascii") + b"\r\n"
    return f"{name}: {_encoded_words(value)}\r\n".encode("ascii")


def _folded(line: str, value: str) -> list[str]:
    """Break before blanks, which stay at the start of the next line (RFC 5322 2.2.3)."""
    lines = []
    for word in re.findall(r" *[^ ]+", f" {value}" if value else ""):
        if len(line) + len(word) > _LINE and not line.endswith(":"):
            lines.append(line)
            line = ""
        line += word
    return [*lines, line]


def _encoded_words(value: str) -> str:
    words, piece = [], b""
    for character in value:
        encoded = character.encode()
        if len(piece) + len(encoded) > _WORD_BYTES:
            words.append(piece)
            piece = b""
        piece += encoded
    words.append(piece)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


@dataclass(frozen=True, kw_only=True)
class Mailbox:
    """An address with a display name, as in From and Reply-To."""

    display_name: str
    address: Address

    @classmethod
    def parse(cls, name: str, text: str) -> "Mailbox":
        """Read `Name <address>` or `address`; `name` is the header's. Raises MessageError."""
        text = checked_value(name, text)
        found = _ANGLE.fullmatch(text)
        display_name, bare = (found[1].strip(), found[2]) if found else ("", text)
        quoted = _QUOTED.fullmatch(display_name)
        if len(display_name) > _LONGEST_NAME or (quoted is None and "<" in display_name):
            raise MessageError(f"The {name} header needs one address, as in `Name <address>`.")
        if quoted is not None:
            display_name = re.sub(r"\\(.)", r"\1", quoted[1])
        try:
            return cls(display_name=display_name, address=normalise(bare))
        except InvalidAddress as invalid:
            raise MessageError(f"The {name} header has no usable address: {invalid.reason}") from invalid

    def field(self, name: str) -> bytes:
        """Return the whole field, ended with CRLF; in UTF-8 if the address needs SMTPUTF8 (RFC 6532)."""
        address = self.address.email
        if not self.display_name:
            return f"{name}: {address}\r\n".encode()
        phrase = self._phrase()
        gap = " " if len(name) + len(phrase) + len(address) + 5 <= _LINE and "\r\n" not in phrase else "\r\n "
        return f"{name}: {phrase}{gap}<{address}>\r\n".encode()

    def _phrase(self) -> str:
        name = self.display_name
        if not name.isascii() or "=?" in name:
            return _encoded_words(name)
        if _ATEXT_WORDS.fullmatch(name):
            return name
        return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'


def custom_name(name: str) -> str:
    """Return the name of a header that a campaign may set. Raises MessageError for any other."""
    lower = name.lower()
    if not _NAME.fullmatch(name) or not (lower in _CUSTOM or lower.startswith("x-")):
        allowed = ", ".join(sorted(_CUSTOM))
        raise MessageError(f"The header {name[:80]!r} cannot be set. Allowed: X-..., {allowed}.")
    return name


def unsubscribe(value: str) -> tuple[tuple[bytes, ...], bytes]:
    """Return the names and the fields: List-Unsubscribe (RFC 2369) and, for https:, one-click (RFC 8058).

    `value` is a URL, a mailto: URL, an address, or several in angle brackets. Raises MessageError.
    """
    value = checked_value("List-Unsubscribe", value)
    given = re.findall(r"<([^<>]*)>", value) if value.startswith("<") else [value]
    given = given or [""]
    uris = [_uri(one.strip()) for one in given]
    joined = ",\r\n ".join(f"<{uri}>" for uri in uris)
    fields = f"List-Unsubscribe: {joined}\r\n".encode("ascii")
    if any(uri.lower().startswith("https:") for uri in uris):
        return (b"List-Unsubscribe", b"List-Unsubscribe-Post"), fields + _ONE_CLICK
    return (b"List-Unsubscribe",), fields


def _uri(text: str) -> str:
    if "@" in text and ":" not in text:
        text = f"mailto:{text}"
    uri = quote(text, safe="%!#$&'()*+,/:;=?@[]~-._")
    if not _URI.fullmatch(uri) or " " in text or len(uri) > _LONGEST_URI:
        raise MessageError("The List-Unsubscribe header needs an https: or mailto: address without blanks.")
    return uri


def header_names(block: bytes) -> list[bytes]:
    """Return the names of the fields in the order in which a receiver reads them.

    Whatever made the block, it is compared with what was meant: an injected field shows here. Bare CR and LF
    count as line ends, as some receivers take them for such; an empty line, which ends the header, shows too.
    """
    *lines, _ = re.split(b"\r\n|\r|\n", block)
    return [line.partition(b":")[0] for line in lines if line[:1] not in (b" ", b"\t")]
