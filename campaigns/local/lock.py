"""One supervisor a data directory."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from campaigns.errors import AlreadyRunning, CampaignsError
from campaigns.private_files import PRIVATE_MODE, make_private_directory

__all__ = ["InstanceLock"]


class InstanceLock:
    """A lock on a directory, held by one process at a time and freed by the kernel when that one ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "up.lock"
        self._file: int | None = None

    def __enter__(self) -> "InstanceLock":
        """Take the lock; raises AlreadyRunning, which names the process that has it, or CampaignsError."""
        try:
            make_private_directory(self._path.parent)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        except OSError as error:
            raise CampaignsError(
                f"{self._path} cannot be written: {error.strerror}; put the configuration into a directory"
                " that can"
            ) from error
        try:
            self._take(file)
        except OSError as error:
            os.close(file)
            raise CampaignsError(f"{self._path} cannot be locked: {error.strerror}") from error
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return self

    def _take(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 32).decode().strip()
            raise AlreadyRunning(
                f"`campaigns up` is running here already (process {holder or 'unknown'}, which holds "
                f"{self._path}): stop that one first, or use it as it is"
            ) from error
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __repr__(self) -> str:
        return f"<InstanceLock {self._path}: {'held' if self._file is not None else 'free'}>"
