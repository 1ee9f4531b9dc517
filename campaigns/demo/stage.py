"""The demo's stage: a folder, two mail servers in processes of their own, and `campaigns up`."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from campaigns.demo.sample import SAMPLE_SIZE, write_csv
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.errors import CampaignsError
from campaigns.local.child import bound_command
from campaigns.settings import Settings, load_settings

__all__ = ["WEIGHTS", "Stage"]

WEIGHTS = {"primary": 70, "secondary": 30}
CONNECTIONS = 12
READY_SECONDS = 60.0
END_SECONDS = 20.0
_READY = "ready:"
_FLOWER = "Flower: "
_UP = ("-c", "from campaigns.cli import main; main()", "up")


class Stage:
    """`with Stage(directory, pace_seconds=0.03) as stage`: everything runs; at the end, nothing does.

    `pace_seconds` is what each server takes for each mail, so that there is something to watch.
    """

    def __init__(self, directory: Path, *, pace_seconds: float = 0.0, flower: bool = False) -> None:
        self.directory = directory
        self.servers = {name: SmtpServerProcess(directory / f"{name}.jsonl", name=name) for name in WEIGHTS}
        self._pace_seconds, self._flower = pace_seconds, flower
        self._up: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What `campaigns up` says."""
        return self.directory / "up.log"

    @property
    def settings(self) -> Settings:
        return load_settings(self.directory / "campaigns.toml", environ={})

    @property
    def flower_address(self) -> str | None:
        """Where Flower answers, if it was asked for."""
        return next(
            (line.partition(_FLOWER)[2] for line in self._log_lines() if line.startswith(_FLOWER)), None
        )

    def __enter__(self) -> Self:
        try:
            for name in self.servers:
                self.start_server(name)
            self._write_configuration()
            self._start_up()
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_server(self, name: str) -> None:
        """Start a mail server, the second time on the same port and with the same record."""
        server = self.servers[name].start()
        if self._pace_seconds:
            server.set("mail", "delay", seconds=self._pace_seconds)

    def write_recipients(self, count: int) -> Path:
        """The sample list, cut to `count` lines; a longer one is made as the sample was."""
        path = self.directory / "recipients.csv"
        shipped = files("campaigns.demo") / "recipients.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            if count > SAMPLE_SIZE:
                write_csv(file, count)
            else:
                file.writelines(shipped.read_text(encoding="utf-8").splitlines(keepends=True)[: count + 1])
        return path

    def newsletter(self) -> Path:
        """The template, beside the list."""
        path = self.directory / "newsletter.html"
        path.write_bytes((files("campaigns.demo") / "newsletter.html").read_bytes())
        return path

    def close(self) -> None:
        """End everything; the files stay."""
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            try:
                self._up.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._up.kill()
                self._up.wait()
        for server in self.servers.values():
            server.kill()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _write_configuration(self) -> None:
        lines = ['database = "sqlite:///campaigns.db"', 'broker = "embedded"']
        for name, server in self.servers.items():
            lines += [
                "",
                "[[servers]]",
                f'name = "{name}"',
                f'url = "smtp://127.0.0.1:{server.port}"',
                'tls = "none"',
                f"weight = {WEIGHTS[name]}",
                f"connections = {CONNECTIONS}",
            ]
        (self.directory / "campaigns.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _start_up(self) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CAMPAIGNS_")}
        with self.log.open("wb") as log:
            self._up = subprocess.Popen(  # noqa: S603 - our own command line
                bound_command([sys.executable, *_UP, *(["--flower"] if self._flower else [])]),
                cwd=self.directory,
                env={**environment, "CAMPAIGNS_CONFIG": str(self.directory / "campaigns.toml")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_until_ready(self) -> None:
        assert self._up is not None
        deadline = time.monotonic() + READY_SECONDS
        while not any(line.startswith(_READY) for line in self._log_lines()):
            if self._up.poll() is not None or time.monotonic() > deadline:
                said = "\n".join(self._log_lines()[-15:])
                raise CampaignsError(f"`campaigns up` did not start in {self.directory}:\n{said}")
            time.sleep(0.05)

    def _log_lines(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def __repr__(self) -> str:
        return f"<Stage {self.directory}: {list(self.servers.values())}>"
