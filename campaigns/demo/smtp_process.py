"""The scripted SMTP server as a process of its own, which can be killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from campaigns.demo.mail_record import AcceptedMail, read_records
from campaigns.local.child import bound_command

__all__ = ["SmtpServerProcess"]

_CONTROL_SECONDS = 10.0
_STOP_SECONDS = 10.0


class SmtpServerProcess:
    """Starts, kills and starts again a server on the same port, with the same record.

    `options` are further command-line options. Not for use within an event loop: it blocks for a moment.
    It never outlives the thread that started it.
    """

    def __init__(
        self, record: Path, *, name: str = "scripted", port: int = 0, options: Sequence[str] = ()
    ) -> None:
        self.record, self.name, self.port = record, name, port
        self._options = tuple(options)
        self.control_port = 0
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        state = f"process {self.pid}" if self.is_running else "not running"
        return f"<SmtpServerProcess {self.name} on port {self.port}: {state}>"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> Self:
        """Start it, and wait until it is ready. Raises RuntimeError with what it said when it could not."""
        if self.is_running:
            raise RuntimeError(f"{self!r} is running already")
        command = [
            *(sys.executable, "-m", "campaigns.demo.smtp_server", "--port", str(self.port), "--control", "0"),
            *("--name", self.name, "--record", str(self.record), *self._options),
        ]
        with tempfile.TemporaryFile("w+") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                bound_command(command), stdout=subprocess.PIPE, stderr=errors, text=True
            )
            assert self._process.stdout is not None
            ready = self._process.stdout.readline()
            if not ready:
                self._process.wait()
                errors.seek(0)
                raise RuntimeError(f"{self!r} did not start: {errors.read().strip()}")
        where = json.loads(ready)
        self.port, self.control_port = where["port"], where["control"]
        return self

    def kill(self) -> None:
        """SIGKILL: what was not durable is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    def suspend(self) -> None:
        """SIGSTOP: the kernel goes on taking connections, and nobody ever speaks on them."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on where it was suspended, with all that was sent to it meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or not self.is_running:
            raise RuntimeError(f"{self!r} cannot be sent {number.name}")
        self._process.send_signal(number)

    def restart(self) -> Self:
        """Kill it if it runs, and start it on the same port."""
        self.kill()
        return self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def records(self) -> list[AcceptedMail]:
        """What it accepted, read from the file; also after it was killed."""
        return read_records(self.record)

    def set(self, phase: str, action: str, **fields: Any) -> None:
        """Misbehave from now on; see `Misbehaviour`."""
        self.control({"set": {"phase": phase, "action": action, **fields}})

    def clear(self) -> None:
        """Behave from now on."""
        self.control({"clear": True})

    def stats(self) -> dict[str, int]:
        """Counts of what happened since it was started."""
        counts: dict[str, int] = self.control({"stats": True})["stats"]
        return counts

    def control(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send one command. Raises ValueError with the server's objection, OSError if the server is away."""
        with socket.create_connection(("127.0.0.1", self.control_port), timeout=_CONTROL_SECONDS) as channel:
            channel.sendall(json.dumps(command).encode() + b"\n")
            with channel.makefile() as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer
