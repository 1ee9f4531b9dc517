"""Rates in a real Valkey: shared by all who ask, and forgiving when it is away."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.limits import Limits
from campaigns.local.broker import EmbeddedBroker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(socket=tmp_path / "v.sock", directory=tmp_path / "valkey")
    broker.start()
    yield broker
    broker.kill()


def _used_up(limits: list[Limits], seconds: float) -> int:
    passed, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for each in limits:
            passed += each.take("server:primary", 100.0, 20, burst_seconds=0.2).granted
        time.sleep(0.005)
    return passed


def test_four_share_one_rate(broker: EmbeddedBroker) -> None:
    limits = [Limits(f"unix://{broker.socket}") for _ in range(4)]
    began = time.monotonic()
    passed = _used_up(limits, 3.0)
    assert abs(passed - 100 * (time.monotonic() - began)) <= 25
    for each in limits:
        each.close()


def test_without_the_broker_each_keeps_its_part(broker: EmbeddedBroker) -> None:
    limits = Limits(f"unix://{broker.socket}")
    broker.kill()
    granted = sum(
        limits.take("server:primary", 100.0, 100, burst_seconds=0.2, processes=4).granted for _ in range(50)
    )
    assert granted <= 10
    limits.close()
