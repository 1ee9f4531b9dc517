"""The local journal: outcomes that the database could not take, kept until it can.

One file a process, one JSON object a line, fsynced before the attempt goes on. A torn last line (the process
or the machine died while writing) is tolerated. What is replayed is fence-checked by the ledger like any
other record, so replaying twice, late or after somebody else decided is harmless. Losing a journal costs an
`uncertain`, never a mail. A file is removed once the ledger has taken all of it.
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from campaigns.ledger import Record
from campaigns.states import State

__all__ = ["Journal"]

log = logging.getLogger(__name__)


class Journal:
    """The journal of one process in `directory`; `replay` takes over those of dead processes too."""

    def __init__(self, directory: Path, owner: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._path = directory / f"{owner}.journal"
        self._wall_clock = wall_clock
        self._file: IO[str] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Journal {self._path.name}>"

    def append(self, record: Record) -> None:
        """Write one outcome and fsync it. Raises OSError when the disk refuses it."""
        line = {**asdict(record), "journaled_at": self._wall_clock()}
        with self._lock:
            file = self._open()
            file.write(json.dumps(line, ensure_ascii=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def replay(self, apply: Callable[[list[Record]], None]) -> int:
        """Hand every journaled record to `apply`, a file at a time, and remove the file; returns how many.

        Whatever `apply` raises is passed on, and the files not yet applied stay.
        """
        self._set_aside()
        replayed = 0
        for path, file in self._nobodys():
            records = list(_records(path, file, self._wall_clock()))
            if records:
                apply(records)
            path.unlink(missing_ok=True)
            replayed += len(records)
        return replayed

    def close(self) -> None:
        """Give up the file; what is in it waits for the next process that replays."""
        with self._lock:
            self._close()

    def _open(self) -> IO[str]:
        if self._file is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._path.open("a", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fsync_directory(self._directory)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _set_aside(self) -> None:
        """Our own file gets another name before it is read: what is appended meanwhile starts a new one."""
        with self._lock:
            self._close()
            if self._path.exists():
                self._path.rename(self._path.with_suffix(f".{time.time_ns()}.journal"))

    def _nobodys(self) -> Iterator[tuple[Path, IO[str]]]:
        """Each journal that no living process writes to, locked while it is read."""
        for path in sorted(self._directory.glob("*.journal")):
            if path == self._path:
                continue
            with contextlib.suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
                if _try_lock(file) and path.exists():
                    yield path, file


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


def _records(path: Path, file: IO[str], now: float) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        try:
            yield _record(json.loads(line), now)
        except (ValueError, TypeError, KeyError):
            log.warning(
                "a journal line is torn and was skipped", extra={"journal": path.name, "line": number}
            )


def _record(values: dict[str, object], now: float) -> Record:
    journaled_at = float(str(values.pop("journaled_at")))
    values["to"] = State(str(values["to"]))
    record = Record(**values)  # type: ignore[arg-type]
    return replace(record, started_seconds_ago=record.started_seconds_ago + max(0.0, now - journaled_at))
