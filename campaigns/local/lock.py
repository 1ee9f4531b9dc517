"""One supervisor a data directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from campaigns.errors import AlreadyRunning

__all__ = ["InstanceLock"]


class InstanceLock:
    """A lock on a directory, held by one process at a time and freed by the kernel when that one ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "up.lock"
        self._file: int | None = None

    def __enter__(self) -> "InstanceLock":
        """Take the lock; raises AlreadyRunning, which names the process that has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 32).decode().strip()
            os.close(file)
            raise AlreadyRunning(
                f"`campaigns up` is running here already (process {holder or 'unknown'}, which holds "
                f"{self._path}): stop that one first, or use it as it is"
            ) from error
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __repr__(self) -> str:
        return f"<InstanceLock {self._path}: {'held' if self._file is not None else 'free'}>"
