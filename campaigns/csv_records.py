"""The records of a CSV file: what a quote gone wrong swallows is told of, and harms no other."""

import csv
import re
from collections.abc import Iterator
from typing import IO

__all__ = ["LONGEST_RECORD", "UNDECODED", "Lines", "records", "wrong"]

LONGEST_RECORD = 1 << 16
# Each line of a record gone wrong is read again as one of its own: with no bound, that grows with the square.
_MOST_LINES = 200
# Two of them within quotes are one that is meant; an odd one opens or closes.
_LONE_QUOTE = re.compile(r'(?<!")"(?:"")*(?!")')
# No name and no brackets: a text that mentions somebody is no row.
_BARE_ADDRESS = re.compile(r'\s*[^\s@<>()",;:]+@[^\s@<>()",;:]+\.[^\s@<>()",;:.]+\s*')
_STRAY_QUOTE = (
    "It stands in a quoted text of several lines that look like rows of their own."
    " Close or remove the quote that is too many."
)
UNDECODED = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of a byte that is no text."""


class Lines:
    """The physical lines of the record being read, so that a record gone wrong can be read again."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._again: list[str] = []
        self.number = 0
        self.record: list[str] = []
        self._characters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._line()
        if not line:
            raise StopIteration
        self.number += 1
        self.record.append(line)
        self._characters += len(line)
        if self._characters >= LONGEST_RECORD or len(self.record) > _MOST_LINES:
            raise csv.Error("the record is too long: is a quote never closed?")
        return line

    def _line(self) -> str:
        """The next line, or the beginning of one too long: its end is no line of its own."""
        line = end = self._file.readline(LONGEST_RECORD)
        while len(end) == LONGEST_RECORD and not end.endswith(("\r", "\n")):
            end = self._file.readline(LONGEST_RECORD)
        return line

    def begin(self) -> int:
        """Start a new record and return its line number."""
        self.record = []
        self._characters = 0
        return self.number + 1

    def only_first(self) -> None:
        """Give all lines but the record's first back: its quote swallowed what are other records."""
        swallowed = self.record[1:]
        self._again.extend(reversed(swallowed))
        self.number -= len(swallowed)


def records(
    lines: Lines, delimiter: str, header: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line, fields), or (line, what is wrong)."""
    while True:
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
        try:
            while True:
                line = lines.begin()
                fields = next(reader)
                if lines.number > line and header and _has_rows(lines.record, delimiter, header):
                    yield from _each_refused(line, lines.record)
                else:
                    yield line, fields
        except StopIteration:
            return
        except csv.Error as error:
            lines.only_first()
            yield line, f"Not readable as CSV: {error}."


def _each_refused(first: int, record: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Every line is told of, and none is a recipient: the text may be meant, however it looks."""
    for number, line in enumerate(record, first):
        yield number, _STRAY_QUOTE if line.strip() else []


def _has_rows(record: list[str], delimiter: str, header: tuple[str, ...]) -> bool:
    """Whether quotes hold a line that by itself is a row: then one of the two may be a stray one.

    A sentence has a blank behind its comma; a list has it everywhere or nowhere.
    """
    blank = f"{delimiter} "
    spaced = blank in _LONE_QUOTE.split(record[0], 1)[0]
    return any(
        "@" in line and (spaced or blank not in line) and _is_row(line, delimiter, header)
        for line in record[1:]
    )


def _is_row(line: str, delimiter: str, header: tuple[str, ...]) -> bool:
    """Whether a line that begins within quotes is a row, its address before their end."""
    column = header.index("email")
    quoted = _fields(_LONE_QUOTE.split(line, 1)[0], delimiter)
    if len(quoted) <= column or not _BARE_ADDRESS.fullmatch(quoted[column]):
        return False
    return wrong(quoted, header) is None or wrong(_fields(line, delimiter), header) is None


def _fields(line: str, delimiter: str) -> list[str]:
    """What a line would be by itself; its own quotes may be wrong, too."""
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=delimiter != "\t"), [])


def wrong(values: list[str], header: tuple[str, ...]) -> str | None:
    expected, found = len(header), len(values)
    if not any(values):
        return None
    if found < expected or any(values[expected:]):
        return f"{found} {'field' if found == 1 else 'fields'}, but the header has {expected}."
    if any(not value.isascii() and UNDECODED.search(value) for value in values):
        return "It holds bytes that are not UTF-8."
    if any("\0" in value for value in values):
        return "It holds a NUL character."
    return None
