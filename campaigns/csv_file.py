"""A list of recipients in a CSV file: what it is made of, and its rows as a stream."""

import codecs
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from campaigns.csv_records import LONGEST_RECORD, UNDECODED, Lines, records, wrong
from campaigns.errors import InvalidRecipients

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["BadRow", "CsvFile", "Row", "read_csv"]

_CHUNK_BYTES = 1 << 18
_BLOCK_ROWS = 100
_DELIMITERS = ",;\t|"
# Excel writes and reads it: the delimiter, said in the first line.
_HINT = re.compile(r'"?sep=([^\w\s"\0]|\t)"?\s*', re.IGNORECASE)
_CP1252_HOLES = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_BINARY = {
    b"PK\x03\x04": "an Excel or other zipped file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzipped file",
    b"\x89PNG": "an image",
}
_SAVE_AS = 'Save it as "CSV UTF-8" and try again.'


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record: `line` is where it starts in the file (from 1); read on from it with `rows(position)`.

    `values` holds every named column by its name in the header; the address is under `email`.
    """

    line: int
    position: int
    values: Mapping[str, str]

    @property
    def email(self) -> str:
        return self.values["email"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A record that could not be read, with the line where it starts and what is wrong with it."""

    line: int
    position: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    """What the file is made of. `digest` is the SHA-256 of its bytes, in hexadecimal.

    `columns` are the named columns in the order of the file, the address's as `email`.
    """

    path: Path
    columns: tuple[str, ...]
    encoding: str
    delimiter: str
    digest: str
    header: tuple[str, ...] = field(repr=False)
    header_records: int = field(repr=False)
    identity: tuple[int, int, int] = field(repr=False)

    def rows(self, start: int = 0) -> Iterator[Row | BadRow]:
        """Yield the records after the first `start` of them; blank ones are passed over.

        Raises InvalidRecipients if the file was changed since `read_csv`, or cannot be read. What is yielded
        was read before the change. A file that another one has replaced is read to its end as it was.
        """
        try:
            source = _Source(self.path)
            with _decoded(source, self.encoding) as file:
                found = records(Lines(file), self.delimiter, self.header)
                rows = _rows(islice(found, self.header_records, None), self.header, start)
                yield from self._unchanged(rows, source)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _unchanged(self, rows: Iterator[Row | BadRow], source: "_Source") -> Iterator[Row | BadRow]:
        """Hold rows back until it is known that they are of the file whose digest was taken."""
        ended = False
        while not ended:
            block = list(islice(rows, _BLOCK_ROWS))
            ended = len(block) < _BLOCK_ROWS
            if source.identity != self.identity or (ended and source.digest != self.digest):
                raise InvalidRecipients(
                    f"{self.path} was changed while it was read. Repeat this with the complete file:"
                    " what was added stays, and nobody is added twice."
                )
            yield from block


def read_csv(path: Path) -> CsvFile:
    """Look the whole file over once: encoding, delimiter, header, digest. Memory stays constant.

    Raises InvalidRecipients, naming the place and the remedy, for what is no usable list.
    """
    try:
        identity = _identity(path.stat())
        survey = _survey(path)
        delimiter, header, header_records = _header(path, survey.encoding)
    except OSError as error:
        raise _unreadable(path, error) from error
    return CsvFile(
        path=path,
        columns=tuple(name for name in header if name),
        encoding=survey.encoding,
        delimiter=delimiter,
        digest=survey.digest,
        header=header,
        header_records=header_records,
        identity=identity,
    )


def _unreadable(path: Path, error: OSError) -> InvalidRecipients:
    return InvalidRecipients(f"{path} cannot be read: {error.strerror}.")


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Source(io.FileIO):
    """The bytes of a file, with the digest of those that were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._read = hashlib.sha256()

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        count = super().readinto(buffer)
        self._read.update(memoryview(buffer)[:count])
        return count

    @property
    def identity(self) -> tuple[int, int, int]:
        return _identity(os.fstat(self.fileno()))

    @property
    def digest(self) -> str:
        return self._read.hexdigest()


def _open(path: Path, encoding: str) -> IO[str]:
    return _decoded(_Source(path), encoding)


def _decoded(source: _Source, encoding: str) -> IO[str]:
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    return io.TextIOWrapper(io.BufferedReader(source), encoding=encoding, errors=errors, newline="")


class _Survey:
    """One pass over the bytes. UTF-8 is told from Latin-1 by the whole file, not by its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._lines = 0
        self._utf16 = False
        self._valid = self._invalid = 0
        self._holes = False

    def start(self, first: bytes) -> None:
        self._utf16 = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if not first.strip(b"\xef\xbb\xbf \t\r\n"):
            raise InvalidRecipients(f"{self._path} is empty. It needs a header line with a column `email`.")
        for magic, kind in _BINARY.items():
            if first.startswith(magic):
                raise InvalidRecipients(f"{self._path} is {kind}, not a CSV file. {_SAVE_AS}")

    def feed(self, chunk: bytes, *, final: bool = False) -> None:
        self._digest.update(chunk)
        if self._utf16:
            return
        nul = chunk.find(0)
        if nul >= 0:
            line = self._lines + chunk.count(b"\n", 0, nul) + 1
            raise InvalidRecipients(f"{self._path}, line {line}: a NUL byte, so this is no text. {_SAVE_AS}")
        self._lines += chunk.count(b"\n")
        self._count(chunk, final=final)

    def _count(self, chunk: bytes, *, final: bool) -> None:
        text = self._decoder.decode(chunk, final)
        if text.isascii():
            return
        invalid = len(UNDECODED.findall(text))
        self._invalid += invalid
        self._valid += _non_ascii(text) - invalid
        self._holes = self._holes or _CP1252_HOLES.search(chunk) is not None

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    @property
    def encoding(self) -> str:
        """A file with a few broken bytes among many good ones is UTF-8: only their rows are refused."""
        if self._utf16:
            return "utf-16"
        if self._invalid * 10 <= self._valid:
            return "utf-8-sig"
        return "latin-1" if self._holes else "cp1252"


def _non_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def _survey(path: Path) -> _Survey:
    survey = _Survey(path)
    with path.open("rb") as file:
        chunk = file.read(_CHUNK_BYTES)
        survey.start(chunk)
        while chunk:
            survey.feed(chunk)
            chunk = file.read(_CHUNK_BYTES)
        survey.feed(b"", final=True)
    return survey


def _header(path: Path, encoding: str) -> tuple[str, tuple[str, ...], int]:
    """Return the delimiter, the names of the columns, and how many records end with the header."""
    with _open(path, encoding) as file:
        hint = _HINT.fullmatch(file.readline(LONGEST_RECORD))
    candidates = []
    for delimiter in hint[1] if hint else _DELIMITERS:
        with _open(path, encoding) as file:
            candidates.append((delimiter, *_names(Lines(file), delimiter, hinted=hint is not None)))
    delimiter, line, names, number = max(candidates, key=_likelihood)
    return delimiter, _checked_header(f"{path}, line {line}", names), number


def _names(lines: "Lines", delimiter: str, *, hinted: bool) -> tuple[int, tuple[str, ...], int]:
    """Return where the header is, the names of the columns, and how many records end with it."""
    for number, (line, values) in enumerate(records(lines, delimiter), 1):
        if any(values) and not (hinted and number == 1):
            names = () if isinstance(values, str) else tuple(name.strip() for name in values)
            return line, names, number
    return 1, (), 0


def _likelihood(candidate: tuple[str, int, tuple[str, ...], int]) -> tuple[bool, int]:
    """A delimiter is right if it finds the column of addresses, and then if it finds many columns."""
    _, _, names, _ = candidate
    return _emails(names) > 0, len(names)


def _emails(names: tuple[str, ...]) -> int:
    return sum(name.lower() == "email" for name in names)


def _checked_header(where: str, names: tuple[str, ...]) -> tuple[str, ...]:
    header = tuple("email" if name.lower() == "email" else name for name in names)
    for name in header:
        if "\0" in name or UNDECODED.search(name):
            raise InvalidRecipients(
                f"{where}: the column `{name[:40]}` has a name that is no text. Rename it."
            )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InvalidRecipients(f"{where}: the column `{twice[0]}` is there twice. Rename or remove one.")
    if "email" not in header:
        there = ", ".join(f"`{name[:40]}`" for name in header[:12] if name) or "none"
        raise InvalidRecipients(
            f"{where}: no column is named `email` (columns: {there}). Name the column of addresses `email`."
        )
    return header


def _rows(
    found: Iterator[tuple[int, list[str] | str]], header: tuple[str, ...], start: int
) -> Iterator[Row | BadRow]:
    for position, (line, values) in enumerate(found, 1):
        if position <= start:
            continue
        reason = values if isinstance(values, str) else wrong(values, header)
        if reason:
            yield BadRow(line=line, position=position, reason=reason)
        elif any(values):
            named = {name: value.strip() for name, value in zip(header, values, strict=False) if name}
            yield Row(line=line, position=position, values=named)
