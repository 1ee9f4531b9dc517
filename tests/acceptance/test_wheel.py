"""The wheel, installed where nothing else is."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from campaigns.demo.sample import write_csv
from campaigns.demo.smtp_process import SmtpServerProcess

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "campaigns", "workers", "migrations")
RECIPIENTS = 200

pytestmark = pytest.mark.timeout(600)


def run(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, within_seconds: float = 400
) -> None:
    result = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=within_seconds, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


def built_from(source: Path) -> set[str]:
    """What should be in the wheel: every file of the packages, where the wheel has it."""
    places = {"campaigns": "campaigns", "workers": "workers", "migrations": "campaigns/migrations"}
    return {
        f"{place}/{path.relative_to(source / folder).as_posix()}"
        for folder, place in places.items()
        for path in (source / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources alone, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the wheel and what it depends on, pinned."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = (folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", "--no-compile")
    run(*pip, "-c", ROOT / "constraints.txt", f"{wheel}[embedded]", cwd=folder)
    return folder / "bin"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, SmtpServerProcess]]:
    started = {}
    try:
        for name in ("primary", "secondary"):
            started[name] = SmtpServerProcess(tmp_path / f"{name}.jsonl", name=name).start()
        yield started
    finally:
        for server in started.values():
            server.kill()


def configure(folder: Path, servers: Mapping[str, SmtpServerProcess]) -> None:
    tables = "\n".join(
        f'[[servers]]\nname = "{name}"\nurl = "smtp://127.0.0.1:{server.port}"\ntls = "none"'
        for name, server in servers.items()
    )
    (folder / "campaigns.toml").write_text(
        f'database = "sqlite:///campaigns.db"\nbroker = "embedded"\n{tables}\n', encoding="utf-8"
    )


def test_two_names_at_the_top_and_no_more(wheel: Path):
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"campaigns", "workers"}


def test_every_file_of_the_packages_is_in_it(source: Path, wheel: Path):
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == built_from(
        source
    )


def test_the_licence_is_in_it(wheel: Path):
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_a_campaign_runs_from_the_wheel(
    installed: Path, servers: Mapping[str, SmtpServerProcess], tmp_path: Path
):
    configure(tmp_path, servers)
    with (tmp_path / "list.csv").open("w", encoding="utf-8", newline="") as file:
        write_csv(file, RECIPIENTS)
    (tmp_path / "news.html").write_text("<p>Hello {{ first_name }}!</p>", encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CAMPAIGNS", "PYTHON"))}
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen([installed / "campaigns", "up"], cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        run(
            *(installed / "campaigns", "send", "spring", "--watch", "--from", "news@post.example"),
            *("--subject", "Hi {{ first_name }}", "--html", "news.html", "--recipients", "list.csv"),
            cwd=tmp_path,
            env=env,
            within_seconds=90,
        )
    finally:
        up.send_signal(signal.SIGINT)
        status = up.wait(60)
        print((tmp_path / "up.log").read_text())
    served = Counter(mail.recipient for server in servers.values() for mail in server.records())
    assert len(served) == RECIPIENTS
    assert set(served.values()) == {1}
    assert status == 0
