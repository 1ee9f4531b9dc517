"""Runs a command that never outlives the process that asked for it.

    python child.py PARENT_PID COMMAND [ARGUMENT ...]

It is run as a file, not as a module, so that it costs a bare interpreter and none of our imports; then it
becomes the command, under the same process id. SIGINT and SIGHUP stay blocked in it: Ctrl-C in a terminal and
the terminal's end reach the whole process group, and it is for the supervisor to say who ends, and when. At
SIGHUP a worker of Celery's would start itself again.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def bound_command(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` bound to the life of this process.

    On Linux it is the calling *thread* whose end kills the child: start children from a thread that stays.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Bind this process to PARENT_PID and become the command."""
    parent, command = int(arguments[0]), list(arguments[1:])
    _die_with(parent)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        os.execvp(command[0], command)  # noqa: S606 - the supervisor's own command line, no shell
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed, and not free, elsewhere

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        _fork_a_watcher(parent, os.getpid())
    if os.getppid() != parent:  # it died before we asked to be told
        sys.exit(0)


def _fork_a_watcher(parent: int, command: int) -> None:
    """Where the kernel tells nobody that a parent died, a small process looks."""
    if os.fork():
        return
    while os.getppid() == command:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(command, signal.SIGKILL)
        time.sleep(_WATCH_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
