"""The local journal: outcomes that the database could not take, kept until it can.

One file a process, one JSON object a line, fsynced before the attempt goes on. A torn last line (the process
or the machine died while writing) is tolerated. What is replayed is fence-checked by the ledger like any
other record, so replaying twice, late or after somebody else decided is harmless. Losing a journal costs an
`uncertain`, never a mail. A file is removed once the ledger has taken all of it.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Record
from campaigns.private_files import make_private_directory
from campaigns.states import State

__all__ = ["Journal"]

log = logging.getLogger(__name__)

SUFFIX = ".journal"


class Journal:
    """The journal of one process in `directory`; `replay` takes over those of dead processes too.

    A file's name is used once, and the file is locked before it can be seen: whoever gets its lock knows that
    nobody writes to it, now or later. Safe to use from threads.
    """

    def __init__(self, directory: Path, owner: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._owner = owner
        self._wall_clock = wall_clock
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Journal of {self._owner}>"

    def append(self, record: Record) -> None:
        """Write one outcome and fsync it. Raises OSError when the disk refuses it."""
        line = {**asdict(record), "journaled_at": self._wall_clock()}
        with self._lock:
            file = self._open()
            file.write(json.dumps(line, ensure_ascii=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def replay(self, apply: Callable[[list[Record]], bool]) -> int:
        """Hand every journaled record to `apply`, a file at a time, and remove the file; returns how many.

        `apply` says whether all were taken: a file that was not, or that has lines which cannot be read, is
        kept for a person under the name `.refused`. A DatabaseUnavailable of `apply` is passed on, and the
        files not yet applied stay; anything else that is wrong with one file leaves the others alone.
        """
        self.close()
        replayed = 0
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                replayed += self._replay_file(path, apply)
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("a journal could not be replayed; it stays", extra={"journal": path.name})
        return replayed

    def close(self) -> None:
        """Give up the file; what is in it waits for the next replay, whoever does it.

        On a full disk this fails, too: closing writes what `append` could not, and has said so. The file is
        closed even so, and the next outcome gets one of its own.
        """
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                try:
                    file.close()
                except OSError as error:
                    log.warning("the end of a journal could not be written", extra={"reason": str(error)})

    def _open(self) -> IO[str]:
        if self._file is None:
            make_private_directory(self._directory.parent)
            make_private_directory(self._directory)
            name = f"{self._owner}.{time.time_ns()}"
            hidden = self._directory / f"{name}.new"
            file = hidden.open("a", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX)
            hidden.rename(self._directory / f"{name}{SUFFIX}")
            _fsync_directory(self._directory)
            self._file = file
        return self._file

    def _replay_file(self, path: Path, apply: Callable[[list[Record]], bool]) -> int:
        try:
            file = path.open("r+", encoding="utf-8", errors="replace")
        except FileNotFoundError:  # somebody else has just replayed it
            return 0
        with file:
            if not _try_lock(file) or not path.exists():
                return 0
            records, is_whole = _records(path, file, self._wall_clock())
            if (not records or apply(records)) and is_whole:
                path.unlink()
            else:
                log.error("a journal has lines that were refused; it is kept", extra={"journal": path.name})
                path.rename(path.with_suffix(".refused"))
            return len(records)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _records(path: Path, file: IO[str], now: float) -> tuple[list[Record], bool]:
    """What can be read, and whether that is all of it but for a torn last line."""
    lines = file.readlines()
    records: list[Record] = []
    unreadable = 0
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(json.loads(line), now))
        except (ValueError, TypeError, KeyError):
            unreadable += not (number == len(lines) and not line.endswith("\n"))
            log.warning("a journal line cannot be read", extra={"journal": path.name, "line": number})
    return records, unreadable == 0


def _record(values: dict[str, object], now: float) -> Record:
    journaled_at = float(str(values.pop("journaled_at")))
    values["to"] = State(str(values["to"]))
    record = Record(**values)  # type: ignore[arg-type]
    return replace(record, started_seconds_ago=record.started_seconds_ago + max(0.0, now - journaled_at))
