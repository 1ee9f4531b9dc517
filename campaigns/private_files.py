"""Directories and files that hold addresses: made for their owner alone, whatever the umask.

What is there already keeps its mode: a group may share it on purpose.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

__all__ = ["PRIVATE_MODE", "make_private_directory", "make_private_file"]

PRIVATE_MODE = 0o600
_making = threading.Lock()


def make_private_directory(path: Path) -> None:
    """Make the directory (0700) and those above it (as usual), if it is not there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Make an empty file (0600), if there is none. Raises OSError.

    One thread at a time: closing a file drops the locks that the process has on it, those of SQLite too, and
    so nobody here may open the file before the one that made it has closed it.
    """
    with _making:
        if not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE))
