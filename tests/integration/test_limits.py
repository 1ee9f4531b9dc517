"""Rates in a real Valkey: shared by all who ask, and forgiving when it is away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
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


RATE, BURST_SECONDS = 100.0, 0.2


@dataclass
class Use:
    """What was granted in how long; `lost_seconds`: what nobody asked for in time, the burst being full."""

    granted: int = 0
    seconds: float = 0.0
    lost_seconds: float = 0.0


def _used_up(limits: list[Limits], seconds: float) -> Use:
    use, began = Use(), time.monotonic()
    asked = began
    while use.seconds < seconds:
        for each in limits:
            use.granted += each.take("server:primary", RATE, 20, burst_seconds=BURST_SECONDS).granted
            answered = time.monotonic()
            use.lost_seconds += max(0.0, answered - asked - BURST_SECONDS)
            use.seconds, asked = answered - began, answered
        time.sleep(0.005)
    return use


def test_four_share_one_rate(broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture) -> None:
    limits = [Limits(f"unix://{broker.socket}") for _ in range(4)]
    use = _used_up(limits, 3.0)
    for each in limits:
        each.close()
    assert use.granted <= RATE * (use.seconds + BURST_SECONDS) + 1
    assert use.granted >= RATE * (use.seconds - use.lost_seconds) - 5
    assert not caplog.records, "the broker was there all the time"


def test_without_the_broker_each_keeps_its_part(broker: EmbeddedBroker) -> None:
    limits = Limits(f"unix://{broker.socket}")
    broker.kill()
    granted = sum(
        limits.take("server:primary", 100.0, 100, burst_seconds=0.2, processes=4).granted for _ in range(50)
    )
    assert granted <= 10
    limits.close()
