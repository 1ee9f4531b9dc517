"""What starts and stops a real mail server in the background, as an operator's commands would.

python -m tests.standby_commands start PORT RECORD
python -m tests.standby_commands stop PORT RECORD
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


def command(action: str, port: int, record: Path) -> list[str]:
    """The argument list for a configuration: it works in any directory."""
    run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.standby_commands import main; main()"
    return [sys.executable, "-c", run, action, str(port), str(record)]


def log_of(record: Path) -> list[str]:
    """The actions that were run, in their order."""
    log = record.with_suffix(".log")
    return log.read_text().splitlines() if log.exists() else []


def pid_of(record: Path) -> int | None:
    """The server's process."""
    file = record.with_suffix(".pid")
    return int(file.read_text()) if file.exists() else None


def kill(record: Path) -> None:
    pid = pid_of(record)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        record.with_suffix(".pid").unlink()


def start(port: str, record: Path) -> None:
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "campaigns.demo.smtp_server", "--name", "reserve"),
            *("--port", port, "--record", str(record)),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    record.with_suffix(".pid").write_text(str(server.pid))


def main(arguments: Sequence[str] | None = None) -> None:
    action, port, record = arguments or sys.argv[1:]
    with Path(record).with_suffix(".log").open("a") as log:
        log.write(f"{action}\n")
    kill(Path(record))  # run twice, it has the same effect
    if action == "start":
        start(port, Path(record))


if __name__ == "__main__":
    main()
