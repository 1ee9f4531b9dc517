"""The commands as an operator has them: real processes for what processes do, click's runner for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from campaigns.cli.group import main

CONFIGURATION = """
database = "{database}"
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:1"
tls = "none"
weight = 70
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:1"
tls = "none"
weight = 30
"""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A directory with a configuration, and the commands in it."""

    directory: Path

    def run(self, *arguments: str) -> Result:
        """In this process."""
        return CliRunner().invoke(main, arguments)

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints, which is all that it prints; it must succeed."""
        result = self.run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """As a process of its own."""
        environ = {**os.environ, "COLUMNS": "80", **options.pop("environ", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        command = [sys.executable, "-m", "campaigns", *arguments]
        return subprocess.Popen(command, cwd=self.directory, env=environ, text=True, **pipes)

    def write(self, name: str, text: str) -> str:
        (self.directory / name).write_text(text, encoding="utf-8")
        return name

    def send(self, *more: str, name: str = "spring") -> Result:
        if not (self.directory / "list.csv").exists():
            self.write("list.csv", "email,first_name\nann@example.com,Ann\nbob@example.com,Bob\n")
        self.write("text.txt", "Hello {{ first_name }}")
        arguments = ["--from", "News <news@example.com>", "--subject", "Hi", "--text", "text.txt"]
        return self.run("send", name, *arguments, "--recipients", "list.csv", *more)


@pytest.fixture
def desk(tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """On SQLite, migrated."""
    directory = tmp_path / "desk"
    directory.mkdir()
    (directory / "campaigns.toml").write_text(CONFIGURATION.format(database=sqlite_url))
    monkeypatch.chdir(directory)
    for variable in [name for name in os.environ if name.startswith("CAMPAIGNS_")]:
        monkeypatch.delenv(variable)
    return Desk(directory=directory)


@pytest.fixture
def bare_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """An empty directory."""
    monkeypatch.chdir(tmp_path)
    return Desk(directory=tmp_path)
