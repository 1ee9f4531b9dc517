"""The lists of rejected lines: private, and never written over anything else."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import IO

from campaigns.errors import InvalidRecipients
from campaigns.printable import spreadsheet_cell
from campaigns.private_files import PRIVATE_MODE

__all__ = ["Rejected", "RejectedFile", "candidates", "written_file"]

_LONGEST_SLUG_BYTES = 100
_HEADER = b"line,email,reason\r\n"
# Never through a link, and never waiting for the other end of a pipe.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A line that cannot be served: where, the address as it was given, and why."""

    line: int
    email: str = field(repr=False)
    reason: str

    def encoded(self) -> bytes:
        """The line of the file."""
        row = io.StringIO()
        csv.writer(row).writerow([self.line, spreadsheet_cell(self.email), spreadsheet_cell(self.reason)])
        return row.getvalue().encode()


Lines = Callable[[], Iterable[Rejected]]


class RejectedFile:
    """Lists rejected lines with their reasons; made, for its owner alone, when the first one comes.

    `path` is the file once there is one. It is the first of `candidates` that does not exist yet; or, for an
    import that is taken up again, one that holds nothing but a beginning of `ours`. A file that was `given`
    is written anew.
    """

    def __init__(
        self, candidates: Iterable[Path], *, given: Path | None = None, ours: Lines | None = None
    ) -> None:
        self.path: Path | None = None
        self._candidates, self._given, self._ours = candidates, given, ours
        self._files = ExitStack()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> RejectedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def __repr__(self) -> str:
        return f"<RejectedFile {self.path or 'not made yet'}>"

    def write(self, rejected: Iterable[Rejected]) -> None:
        """Raises InvalidRecipients if the file cannot be made or written."""
        for one in rejected:
            stream = self._open()
            try:
                stream.write(one.encoded())
            except OSError as error:
                raise InvalidRecipients(f"{self.path} cannot be written: {error.strerror}") from error

    def _open(self) -> IO[bytes]:
        if self._stream is None:
            self.path, file = self._chosen()
            self._stream = self._files.enter_context(os.fdopen(file, "wb"))
            self._stream.write(_HEADER)
        return self._stream

    def _chosen(self) -> tuple[Path, int]:
        if self._given is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            return self._given, _opened(self._given, flags)
        for path in self._candidates:
            if (file := self._made(path)) is not None or (file := self._own(path)) is not None:
                return path, file
        raise InvalidRecipients("no name is free for the list of rejected lines")

    def _made(self, path: Path) -> int | None:
        try:
            return _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        except FileExistsError:
            return None

    def _own(self, path: Path) -> int | None:
        if self._ours is None:
            return None
        try:
            file = os.open(path, os.O_RDWR | _CAREFULLY)
        except OSError:
            return None
        if not _begins(file, self._ours()):
            os.close(file)
            return None
        os.lseek(file, 0, os.SEEK_SET)
        os.ftruncate(file, 0)
        return file


def candidates(directory: Path, name: str, campaign_id: int, number: int) -> Iterator[Path]:
    """`spring-rejected.csv`, `spring-rejected-2.csv`, ... from the campaign's list of that number on.

    A name that no file can have whole is completed by the campaign's id: two of them may be cut to the same.
    """
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "campaign"
    slug = slug.encode()[:_LONGEST_SLUG_BYTES].decode(errors="ignore")
    if slug != name:
        slug = f"{slug}-{campaign_id}"
    for each in count(number):
        yield directory / f"{slug}-rejected{'' if each == 1 else f'-{each}'}.csv"


def written_file(paths: Iterable[Path], ours: Lines) -> Path | None:
    """The file that an import made which is over; None if it is not there any more."""
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY | _CAREFULLY)
        except FileNotFoundError:
            return None
        except OSError:
            continue
        try:
            if _begins(file, ours()):
                return path
        finally:
            os.close(file)
    return None


def _begins(file: int, ours: Iterable[Rejected]) -> bool:
    """Whether all that a file holds is what this list begins with: then nothing is lost with it."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return False
    with os.fdopen(os.dup(file), "rb") as stream:
        for line in chain((_HEADER,), (one.encoded() for one in ours)):
            there = stream.read(len(line))
            if there != line:
                return line.startswith(there)
        return not stream.read(1)


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, PRIVATE_MODE)
    except FileExistsError:
        raise
    except OSError as error:
        raise InvalidRecipients(f"{path} cannot be written: {error.strerror}") from error
