"""Ctrl-C: one line and the exit status 130, from the first module that is loaded on."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

__all__ = ["INTERRUPTED", "begin", "leave_quietly"]

INTERRUPTED = 130


def leave_quietly() -> None:
    """While modules load, Ctrl-C ends the process where it is: there is nothing to take down.

    An exception would be shown by whatever it meets. Who starts us with SIGINT ignored has a reason.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def begin() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, so that what has begun is taken down in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> NoReturn:
    os.write(2, b"\nInterrupted; nothing was done.\n")
    os._exit(INTERRUPTED)
