"""Which limits hold for which mail."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from campaigns.limit import Limit
from campaigns.quotas import Quotas, Remembered
from campaigns.settings import Settings, load_settings

BASE = """
broker = "amqp://localhost:1//"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:2525"
tls = "none"
"""


def _settings(directory: Path, text: str) -> Settings:
    file = directory / "campaigns.toml"
    file.write_text(BASE + text, encoding="utf-8")
    return load_settings(file, {})


def _at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


def _told(limits: tuple[Limit, ...]) -> list[tuple[str, float]]:
    return [(limit.text, limit.count) for limit in limits]


def test_a_server_keeps_to_its_rate_and_to_its_limits(tmp_path: Path) -> None:
    quotas = Quotas(_settings(tmp_path, 'rate = "20/s"\nlimits = ["30/s", "1000/h", "5000/d"]'))
    assert _told(quotas.of("primary", "a.example")) == [("20/s", 20), ("1000/h", 1000), ("5000/d", 5000)]
    assert not quotas.has_domain_limits


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert Quotas(_settings(tmp_path, "")).of("primary", "a.example") == ()


def test_a_domain_and_a_pair_have_limits_beside_the_servers(tmp_path: Path) -> None:
    text = 'limits = ["1000/h"]\n[servers.domain_limits]\n"a.example" = "2/s"\n'
    text += '[limits]\n"a.example" = ["5/s"]\n"*" = ["9/s"]'
    quotas = Quotas(_settings(tmp_path, text))
    assert _told(quotas.of("primary", "a.example")) == [
        ("1000/h", 1000),
        ("5/s to a.example", 5),
        ("2/s to a.example through primary", 2),
    ]
    assert _told(quotas.of("primary", "b.example")) == [("1000/h", 1000), ("9/s to b.example", 9)]
    assert quotas.of("primary", "b.example")[1].name != quotas.of("primary", "c.example")[1].name
    assert quotas.has_domain_limits


WARM_UP = "[servers.warm_up]\nstart = 2026-03-02\nper_day = [50, 100]"


def test_a_warm_up_grows_at_midnight_and_ends(tmp_path: Path) -> None:
    settings = _settings(tmp_path, 'limits = ["80/d"]\n' + WARM_UP)
    counts = {}
    for day in ("2026-03-01T12:00", "2026-03-02T00:00", "2026-03-02T23:59", "2026-03-03T00:00", "2026-03-04"):
        (limit,) = Quotas(settings, clock=lambda day=day: _at(day)).of_server("primary")
        counts[day] = limit.count
    assert list(counts.values()) == [0, 50, 50, 80, 80]


def test_nobody_waits_beyond_midnight_for_a_warm_up(tmp_path: Path) -> None:
    quotas = Quotas(_settings(tmp_path, WARM_UP), clock=lambda: _at("2026-03-02T23:00"))
    assert quotas.wait_seconds("primary", 50_000.0) == 3600
    assert quotas.wait_seconds("primary", 5.0) == 5


def test_what_is_counted_has_a_name_that_does_not_depend_on_the_numbers(tmp_path: Path) -> None:
    def name(text: str) -> str:
        return Remembered(_settings(tmp_path, text), None).name  # type: ignore[arg-type]

    assert name('limits = ["80/d"]') == name('limits = ["90/d", "5/s"]') == name(WARM_UP)
    assert name('limits = ["80/d"]') != name('limits = ["80/h"]')
    assert name('limits = ["80/d"]') != name('limits = ["80/d"]\n[limits]\n"a.example" = "5/h"')
