"""Limits in a real Valkey: shared by all who ask, kept while it is away, remembered when it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaigns.errors import DatabaseUnavailable
from campaigns.limit import Grant, Limit, Meter
from campaigns.limits import Limits, Request
from campaigns.local.broker import EmbeddedBroker


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    directory = tmp_path_factory.mktemp("limits")
    broker = EmbeddedBroker(socket=directory / "v.sock", directory=directory / "valkey")
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def url(shared_broker: EmbeddedBroker) -> str:
    url = f"unix://{shared_broker.socket}"
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(socket=tmp_path / "v.sock", directory=tmp_path / "valkey")
    broker.start()
    yield broker
    broker.kill()


RATE, BURST_SECONDS = 100.0, 0.2
HOUR = Limit.of("server:primary", 100, 3600, "100/h")
DAY = Limit.of("server:primary", 1000, 86400, "1000/d")


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


def test_four_share_one_rate(url: str, caplog: pytest.LogCaptureFixture) -> None:
    limits = [Limits(url) for _ in range(4)]
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


class _Ledger:
    """What was sent before, as a ledger would tell it; `during` runs while it is being read."""

    name = "for the test"

    def __init__(self, *used: tuple[Limit, float, int]) -> None:
        self.used = used
        self.reads = 0
        self.is_away = False

    def read(self) -> list[tuple[Limit, Sequence[tuple[float, int]]]]:
        self.reads += 1
        if self.is_away:
            raise DatabaseUnavailable("gone")
        time.sleep(0.05)
        return [(limit, [(age_seconds, count)]) for limit, age_seconds, count in self.used]


class _DeadlyLedger(_Ledger):
    """The broker dies while it is read for the first time."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        super().__init__((HOUR, 600.0, 70))
        self._broker = broker
        self.has_killed = False

    def read(self) -> list[tuple[Limit, Sequence[tuple[float, int]]]]:
        if not self.has_killed:
            with redis.Redis.from_url(f"unix://{self._broker.socket}") as client:
                client.set("the last", "write")
                assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1
            self._broker.kill()
            self.has_killed = True
        return super().read()


def _take(limits: Limits, wanted: int, *each: Limit) -> Grant:
    return limits.take_all([Request(limits=each, wanted=wanted)])[0]


LIMITS = (
    Limit.of("a", 7, 1, "7/s"),
    Limit.of("b", 90, 60, "90/m"),
    Limit.of("c", 20, 3600, "20/h"),
    Limit.of("c", 35, 86400, "35/d"),
)


@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.tuples(
            st.floats(0, 2000) | st.floats(0, 1),
            st.integers(-3, 12),
            st.lists(st.sampled_from(LIMITS), min_size=1, unique=True),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_the_script_and_its_twin_agree(url: str, steps: list[tuple[float, int, list[Limit]]]) -> None:
    now = [1_000_000.0]
    with redis.Redis.from_url(url) as client:
        client.flushall()
    limits, meter = Limits(url, memory=_Ledger(), clock=lambda: now[0]), Meter()
    for pause, wanted, each in steps:
        now[0] += pause
        shared, alone = _take(limits, wanted, *each), meter.take(each, wanted, now[0])
        assert (shared.granted, shared.limit, shared.left) == (alone.granted, alone.limit, alone.left)
        assert shared.wait_seconds == pytest.approx(alone.wait_seconds, abs=1e-6)
    limits.close()


@pytest.mark.parametrize("limit", [HOUR, DAY], ids=["hour", "day"])
def test_what_went_out_just_within_the_window_counts_in_the_script_too(url: str, limit: Limit) -> None:
    now = [10 * 86_400 + limit.bucket_seconds - 1.0]
    limits = Limits(url, memory=_Ledger(), clock=lambda: now[0])
    assert _take(limits, 5_000, limit).granted == limit.count
    now[0] += limit.period_seconds - 1
    assert _take(limits, 5_000, limit).granted == 0
    now[0] += 1 + limit.bucket_seconds
    assert _take(limits, 5_000, limit).granted == limit.count
    limits.close()


def test_several_requests_are_answered_in_one_round_trip_each_by_itself(url: str) -> None:
    limits = Limits(url, memory=_Ledger())
    requests = [Request(limits=(HOUR,), wanted=60), Request(limits=(HOUR, DAY), wanted=60)]
    assert [grant.granted for grant in limits.take_all(requests)] == [60, 40]
    limits.close()


def test_what_was_used_survives_the_loss_of_redis(url: str) -> None:
    ledger = _Ledger((HOUR, 600.0, 70), (DAY, 600.0, 70))
    limits = Limits(url, memory=ledger)
    assert _take(limits, 99, HOUR, DAY).granted == 30
    with redis.Redis.from_url(url) as client:
        client.flushall()
    ledger.used = ((HOUR, 600.0, 100), (DAY, 600.0, 100))
    assert _take(limits, 99, HOUR, DAY).granted == 0
    assert ledger.reads == 2
    limits.close()


def test_two_processes_that_find_the_counts_lost_count_nothing_twice(url: str) -> None:
    everybody = [Limits(url, memory=_Ledger((HOUR, 600.0, 70))) for _ in range(4)]
    granted: list[int] = []

    def ask(limits: Limits) -> None:
        for _ in range(20):
            granted.append(_take(limits, 5, HOUR).granted)
            time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(limits,)) for limits in everybody]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 30
    for limits in everybody:
        limits.close()


def test_who_reads_for_too_long_forgets_nothing_that_went_out_meanwhile(url: str) -> None:
    """Its turn at the ledger was over before it had read it, and another has read it, too."""
    quick, granted = Limits(url, memory=_Ledger((HOUR, 600.0, 70))), list[int]()

    class Slow(_Ledger):
        def read(self) -> list[tuple[Limit, Sequence[tuple[float, int]]]]:
            found = super().read()
            if not granted:
                with redis.Redis.from_url(url) as client:
                    client.delete(*client.scan_iter("*:reading"))
                granted.append(_take(quick, 5, HOUR).granted)
            return found

    slow = Limits(url, memory=Slow((HOUR, 600.0, 70)))
    granted.append(_take(slow, 99, HOUR).granted)
    assert granted == [5, 25]
    quick.close()
    slow.close()


def test_nothing_counted_goes_out_while_nobody_knows_what_was_used(url: str) -> None:
    ledger = _Ledger((HOUR, 600.0, 70))
    ledger.is_away = True
    limits = Limits(url, memory=ledger)
    grant = _take(limits, 1, HOUR)
    assert grant.granted == 0
    assert grant.wait_seconds >= 0.2
    ledger.is_away = False
    assert _take(limits, 99, HOUR).granted == 30
    limits.close()


def test_a_process_alone_sends_nothing_counted_while_nobody_knows_what_was_used() -> None:
    ledger = _Ledger((HOUR, 600.0, 70))
    ledger.is_away = True
    limits = Limits(None, memory=ledger)
    assert _take(limits, 1, HOUR).granted == 0
    ledger.is_away = False
    assert _take(limits, 99, HOUR).granted == 30
    limits.close()


def test_another_configuration_counts_anew(url: str) -> None:
    first, second = _Ledger(), _Ledger((HOUR, 60.0, 90))
    second.name = "another"
    limits, changed = Limits(url, memory=first), Limits(url, memory=second)
    assert _take(limits, 200, HOUR).granted == 100
    assert _take(changed, 200, HOUR).granted == 10
    limits.close()
    changed.close()


def test_without_the_broker_each_keeps_its_part_of_what_is_left_of_the_hour(broker: EmbeddedBroker) -> None:
    ledger, later = _Ledger((HOUR, 600.0, 60)), [0.0]
    limits = Limits(f"unix://{broker.socket}", memory=ledger, monotonic=lambda: time.monotonic() + later[0])
    assert _take(limits, 1, HOUR).granted == 1
    broker.kill()
    ledger.used = ((HOUR, 600.0, 61),)
    request = Request(limits=(HOUR,), wanted=99, processes=3)
    assert limits.take_all([request])[0].granted == 13
    later[0] += 5.0
    assert limits.take_all([request])[0].granted == 0
    assert ledger.reads == 2, "once with the broker and once without: it is no light question"
    limits.close()


def test_what_went_out_without_the_broker_is_counted_when_it_is_back(broker: EmbeddedBroker) -> None:
    ledger, later = _Ledger((HOUR, 600.0, 60)), [0.0]
    url = f"unix://{broker.socket}"
    limits = Limits(url, memory=ledger, monotonic=lambda: time.monotonic() + later[0])
    assert _take(limits, 1, HOUR).granted == 1
    with redis.Redis.from_url(url) as client:
        client.set("the last", "write")
        assert client.execute_command("WAITAOF", 1, 0, 10_000)[0] == 1, "all before it is on the disk, too"
    broker.kill()
    ledger.used = ((HOUR, 600.0, 61),)
    assert _take(limits, 99, HOUR).granted == 39
    ledger.used = ((HOUR, 600.0, 100),)
    broker.start()
    with redis.Redis.from_url(url) as client:
        assert list(client.scan_iter("*:count:*")), "it was away, and has lost nothing"
    later[0] += 5.0
    assert sum(_take(limits, 99, HOUR).granted for _ in range(3)) == 0
    assert _take(limits, 0, HOUR).left == (0,)
    limits.close()


def test_a_broker_that_dies_while_a_process_reads_the_ledger_does_not_make_it_wait_for_itself(
    broker: EmbeddedBroker,
) -> None:
    ledger, later = _DeadlyLedger(broker), [0.0]
    url = f"unix://{broker.socket}"
    limits = Limits(url, memory=ledger, monotonic=lambda: time.monotonic() + later[0])
    assert _take(limits, 1, HOUR).granted == 1, "alone, from what was read"
    assert ledger.has_killed
    broker.start()
    with redis.Redis.from_url(url) as client:
        assert list(client.scan_iter("*:reading")), "the broker remembers that somebody reads"
    later[0] += 5.0
    ledger.used = ((HOUR, 600.0, 71),)
    assert _take(limits, 99, HOUR).granted == 29
    limits.close()


def test_who_only_looks_keeps_no_counts_for_others(url: str) -> None:
    ledger = _Ledger((HOUR, 600.0, 10))
    looking, taking = Limits(url, memory=ledger, fills=False), Limits(url, memory=ledger)
    assert _take(looking, 0, HOUR).left == (90,)
    ledger.used = ((HOUR, 600.0, 95),)
    assert _take(taking, 99, HOUR).granted == 5, "what went out since somebody looked is not forgotten"
    assert _take(looking, 0, HOUR).left == (0,)
    looking.close()
    taking.close()


def test_a_script_that_redis_has_forgotten_is_told_again(url: str) -> None:
    limits = Limits(url, memory=_Ledger())
    assert _take(limits, 1, HOUR).granted == 1
    with redis.Redis.from_url(url) as client:
        client.script_flush()
    assert _take(limits, 1, HOUR).granted == 1
    limits.close()


def test_keys_do_not_stay_for_ever(url: str) -> None:
    limits = Limits(url, memory=_Ledger())
    _take(limits, 1, HOUR, DAY, *LIMITS)
    with redis.Redis.from_url(url) as client:
        assert all(client.ttl(key) > 0 for key in client.scan_iter())
    limits.close()


def test_an_absence_is_told_once_of_limits_that_somebody_configured(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    later = [0.0]
    url = f"unix://{broker.socket}"
    every = [Limits(url, memory=_Ledger(), monotonic=lambda: time.monotonic() + later[0]) for _ in range(3)]
    broker.kill()

    def lines_after(name: str) -> list[str]:
        caplog.clear()
        for _ in range(5):
            for limits in every:
                limits.take(name, RATE, 1, burst_seconds=BURST_SECONDS)
            later[0] += 3.0
        return [one.getMessage() for one in caplog.records]

    assert lines_after("turn:sweep") == []
    assert lines_after("campaign:1") == ["limits are kept by each process alone"]
    broker.start()
    assert lines_after("campaign:1") == ["limits are kept by all processes together again"]
    for limits in every:
        limits.close()
