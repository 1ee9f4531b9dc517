"""pyproject.toml, constraints.txt and the Makefile agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += [text for text in extra if not text.startswith("campaigns[")]
    return [Requirement(text) for text in texts]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().split()
    pairs = (line.partition("==") for line in lines)
    return {canonicalize_name(name): Version(version) for name, _, version in pairs}


def test_every_dependency_is_pinned_within_what_the_project_allows():
    pinned = pins()
    outside = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    ]
    assert outside == []


def test_every_package_of_the_checkout_is_named_for_the_wheel():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("campaigns", "workers")
        for path in (ROOT / name).rglob("*.py")
    }
    migrations = {"campaigns.migrations", "campaigns.migrations.versions"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders | migrations


def test_the_command_leads_to_the_command_line():
    assert PROJECT["project"]["scripts"] == {"campaigns": "campaigns.cli:main"}


def test_make_without_a_goal_shows_what_there_is_to_make():
    shown = subprocess.run(
        ["make", "-C", ROOT], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    assert {"install", "demo", "test", "check"} <= set(re.findall(r"make (\w+)", shown))


def test_make_says_which_python_it_needs(tmp_path: Path):
    old = tmp_path / "python2"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 2.7.18\nexit 1\n')
    old.chmod(0o755)
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    made = subprocess.run(
        ["make", "-C", tmp_path, f"PYTHON={old}", "install"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert made.returncode != 0
    assert "Campaigns needs Python >= 3.11" in made.stderr
    assert "Python 2.7.18" in made.stderr
