"""A Valkey server on a TCP port, with any options: it can be killed, filled, put behind a bad network."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import redis

from campaigns.local.broker import EmbeddedBroker
from campaigns.local.child import bound_command
from tests.acceptance.place import eventually

__all__ = ["Valkey"]


class Valkey:
    """`start` it, and it listens on the same port each time."""

    def __init__(self, directory: Path, options: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        binary = EmbeddedBroker(
            socket=self.directory.parent / "unused.sock", directory=self.directory
        ).command()[0]
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "logfile": str(self.directory / "valkey.log"),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        command = [binary, *(word for key, value in options.items() for word in (f"--{key}", value))]
        self._process = subprocess.Popen(
            bound_command(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(os.environ)
        )
        eventually(self._answers, seconds=15, what="the broker is up")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
