"""Which processes `campaigns up` runs."""

from pathlib import Path

import pytest

from campaigns.local.fleet_plan import FleetPlan
from campaigns.local.supervisor import Child
from campaigns.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "campaigns.toml"
    servers = [f'[[servers]]\nname = "{name}"\nurl = "smtp://{name}.example"' for name in ("one", "two")]
    file.write_text("\n".join(servers))
    return load_settings(file, environ={})


def queue(child: Child) -> str:
    return child.command[child.command.index("-Q") + 1]


def test_each_server_has_its_own_workers_and_the_control_tasks_have_one(settings: Settings):
    workers = FleetPlan(settings=settings, processes=2).workers()
    assert [(child.name, queue(child)) for child in workers] == [
        ("one-1", "smtp.one"),
        ("one-2", "smtp.one"),
        ("two-1", "smtp.two"),
        ("two-2", "smtp.two"),
        ("control", "campaigns"),
    ]


def test_the_children_find_the_configuration_wherever_they_are(settings: Settings):
    for child in FleetPlan(settings=settings, flower_port=5555).workers():
        assert Path(child.environment["CAMPAIGNS_CONFIG"]) == settings.config_file
        assert Path(child.environment["CAMPAIGNS_CONFIG"]).is_absolute()


def test_flower_is_optional(settings: Settings):
    assert FleetPlan(settings=settings).flower() == []
    (flower,) = FleetPlan(settings=settings, flower_port=7777).flower()
    assert {"flower", "--port=7777"} <= set(flower.command)
    assert not [word for word in flower.command if word.startswith("--address")]
