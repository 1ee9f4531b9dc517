"""What the producer sees of the limits, with a real ledger and a real Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from campaigns.allowance import UNLIMITED, Allowance
from campaigns.ledger import Ledger
from campaigns.limits import Limits, Request
from campaigns.local.broker import EmbeddedBroker
from campaigns.quotas import Quotas, Remembered
from campaigns.settings import Settings, load_settings
from campaigns.states import State
from tests.crowd import Crowd

SERVERS = """
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:2525"
tls = "none"
{primary}
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:2526"
tls = "none"
[limits]
{domains}
"""


class Bench:
    """Settings, a broker of theirs, the producer's view and a worker's hand."""

    def __init__(self, directory: Path, ledger: Ledger, primary: str, domains: str) -> None:
        file = directory / "campaigns.toml"
        file.write_text(SERVERS.format(primary=primary, domains=domains), encoding="utf-8")
        self.settings: Settings = load_settings(file, {})
        self.ledger = ledger
        self.broker = EmbeddedBroker.of(self.settings)
        self.broker.start()
        self.now = [0.0]
        self.allowance = Allowance(self.settings, ledger, monotonic=lambda: self.now[0])
        self.limits = Limits(self.settings.state_url, memory=Remembered(self.settings, ledger))

    def send(self, count: int, domain: str = "a.example") -> int:
        limits = Quotas(self.settings).of("primary", domain)
        return self.limits.take_all([Request(limits=limits, wanted=count)])[0].granted

    def look(self, *domains: str) -> Allowance:
        self.now[0] += 10.0
        self.allowance.refresh(domains)
        return self.allowance

    def lose_redis(self) -> None:
        with redis.Redis.from_url(str(self.settings.state_url)) as client:
            client.flushall()

    def events(self) -> list[tuple[str | None, str | None, str | None]]:
        found = [event for event in self.ledger.events() if event.kind == "limit"]
        return [(event.server, event.to_state, event.reason) for event in found]

    def close(self) -> None:
        self.allowance.close()
        self.limits.close()
        self.broker.stop()


@pytest.fixture
def make(tmp_path: Path, ledger: Ledger) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(primary: str = "", domains: str = "") -> Bench:
        made.append(Bench(tmp_path, ledger, primary, domains))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def test_a_server_without_limits_has_room_for_all(make: Callable[..., Bench]) -> None:
    allowance = make().look()
    assert allowance.room("primary", 2.0) == UNLIMITED
    assert allowance.is_exhausted("primary") is None
    assert allowance.used("primary") == []
    assert allowance.domain_wait("primary", "a.example") == 0


def test_room_is_what_the_tightest_limit_allows(make: Callable[..., Bench]) -> None:
    bench = make('rate = "50/s"\nlimits = ["300/h"]')
    assert 100 <= bench.look().room("primary", 2.0) <= 111
    assert bench.look().room("primary", 60.0) == 300
    assert bench.look().room("secondary", 2.0) == UNLIMITED


def test_a_limit_that_is_used_up_says_so_and_until_when(make: Callable[..., Bench]) -> None:
    bench = make('limits = ["30/h", "1000/d"]')
    assert bench.send(99) == 30
    allowance = bench.look()
    assert allowance.room("primary", 2.0) == 0
    wait_seconds, limit = allowance.is_exhausted("primary") or (0.0, "")
    assert 3500 < wait_seconds <= 3660
    assert limit == "30/h"
    assert [(one.limit, one.used, one.of) for one in allowance.used("primary")] == [
        ("30/h", 30, 30),
        ("1000/d", 30, 1000),
    ]


def test_a_limit_that_is_used_up_is_one_event_and_its_end_is_another(make: Callable[..., Bench]) -> None:
    bench = make('limits = ["30/h"]')
    bench.send(30)
    another = Allowance(bench.settings, bench.ledger)
    for _ in range(3):
        bench.look()
    another.refresh()
    assert bench.events() == [("primary", "full", "30/h is used up")]
    bench.lose_redis()
    bench.limits.began("full:server:primary/3600", 60)
    bench.look()
    another.close()
    assert bench.events()[1:] == [("primary", "open", "30 left of 30/h")]


def test_the_end_is_told_however_late_anybody_looks(make: Callable[..., Bench]) -> None:
    """A twentieth of it may be free long after its first mail is, and workers may be away meanwhile."""
    bench = make('limits = ["30/h"]')
    bench.send(30)
    bench.look()
    with redis.Redis.from_url(str(bench.settings.state_url)) as client:
        ((name, seconds),) = [(key, client.ttl(key)) for key in client.scan_iter("*full:*")]
    assert name.endswith(b"full:server:primary/3600")
    assert seconds > 86_400


def test_a_warm_up_that_is_over_is_full_no_longer(make: Callable[..., Bench]) -> None:
    bench = make("[servers.warm_up]\nstart = 2020-01-01\nper_day = [50, 100]")
    bench.limits.began("full:server:primary/86400", 60)
    for _ in range(2):
        bench.look()
    assert bench.events() == [("primary", "open", "its warm-up is over")]


def test_who_only_looks_tells_nothing(make: Callable[..., Bench]) -> None:
    """Its configuration may not be the workers' yet, and its log is nowhere."""
    bench = make('limits = ["30/h"]')
    bench.send(30)
    onlooker = Allowance(bench.settings, bench.ledger, fills=False)
    onlooker.refresh()
    onlooker.close()
    assert bench.events() == []


def test_what_was_used_is_read_from_the_ledger_when_redis_has_lost_it(
    make: Callable[..., Bench],
) -> None:
    bench = make('limits = ["30/h"]', '"example.com" = "20/h"')
    crowd = Crowd(bench.ledger, 8)
    for claim in crowd.claim("primary"):
        crowd.report(claim, State.SENT)
    bench.lose_redis()
    assert bench.look().used("primary")[0].used == 8
    assert bench.send(99, "example.com") == 12
    assert bench.send(99, "b.example") == 10


def test_mail_to_a_full_domain_waits_spread_out_and_the_others_do_not(make: Callable[..., Bench]) -> None:
    bench = make(domains='"a.example" = "2/s"')
    bench.send(1)
    allowance = bench.look("a.example", "b.example")
    waits = [allowance.domain_wait("primary", "a.example") for _ in range(8)]
    assert waits[:4] == [0.0] * 4
    assert all(later == pytest.approx(wait + 0.5) for wait, later in pairwise(waits[4:]))
    assert allowance.domain_wait("primary", "b.example") == 0
    assert allowance.domain_wait("primary", "a.example", "transactional") < waits[-1]


def test_what_is_queued_for_a_domain_has_its_place_already(make: Callable[..., Bench]) -> None:
    bench = make(domains='"example.com" = "2/s"')
    Crowd(bench.ledger, 10).queue("secondary")
    bench.send(1, "example.com")
    assert bench.look("example.com").domain_wait("primary", "example.com") > 0


def test_mail_that_two_servers_may_take_waits_only_if_both_are_full(make: Callable[..., Bench]) -> None:
    bench = make('[servers.domain_limits]\n"a.example" = "1/h"')
    assert bench.send(5) == 1
    both = ["primary", "secondary"]
    waits = bench.look("a.example").domain_waits(both, "a.example")
    assert waits["secondary"] == 0
    assert waits["primary"] > 3000
    assert bench.look("a.example").domain_wait("primary", "a.example") > 3000


def test_what_is_held_while_nobody_knows_the_counts_comes_back_soon(make: Callable[..., Bench]) -> None:
    """Another process is reading them: nothing tells that the day is used up."""
    bench = make(domains='"a.example" = ["15/s", "30000/d"]')
    with redis.Redis.from_url(str(bench.settings.state_url)) as client:
        name = Remembered(bench.settings, bench.ledger).name
        client.set(f"campaigns:counts:{name}:reading", "1", ex=30)
    allowance = bench.look("a.example")
    waits = [allowance.domain_wait("primary", "a.example") for _ in range(400)]
    assert min(waits) == 1.0
    assert max(waits) <= 11.1


def test_a_day_that_is_used_up_while_redis_is_away_is_asked_for_again_before_long(
    make: Callable[..., Bench],
) -> None:
    bench = make(domains='"example.com" = "8/d"')
    crowd = Crowd(bench.ledger, 8)
    for claim in crowd.claim("primary"):
        crowd.report(claim, State.SENT)
    bench.broker.kill()
    allowance = bench.look("example.com")
    waits = [allowance.domain_wait("primary", "example.com") for _ in range(43)]
    assert min(waits) == 60.0
    assert max(waits) <= 120.0
