"""Attempts that wait for their turn: in order, not behind others' limits, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from campaigns.limit import Limit
from campaigns.limits import Grant, Limits, Request
from campaigns.quotas import Quotas
from campaigns.settings import load_settings
from workers.pace import Hold, Pace

BASE = """
broker = "amqp://localhost:1//"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:2525"
tls = "none"
"""


class _Nothing:
    """The memory of a ledger in which nothing was sent."""

    name = "nothing"

    def read(self) -> list[tuple[Limit, list[tuple[float, int]]]]:
        return []


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[[str], Pace]]:
    made: list[Pace] = []

    def make(text: str) -> Pace:
        file = tmp_path / "campaigns.toml"
        file.write_text(BASE + text, encoding="utf-8")
        quotas = Quotas(load_settings(file, {}))
        made.append(Pace(quotas, Limits(None, memory=_Nothing()), lambda _: 1))
        return made[-1]

    yield make
    for pace in made:
        await pace.close()


async def _soon(*turns: asyncio.Task[Hold | None], seconds: float = 0.3) -> list[bool]:
    await asyncio.wait(turns, timeout=seconds)
    return [turn.done() for turn in turns]


def _ask(
    pace: Pace, count: int, domain: str = "a.example", stream: str = ""
) -> list[asyncio.Task[Hold | None]]:
    return [asyncio.create_task(pace.turn("primary", domain, stream)) for _ in range(count)]


async def test_without_a_limit_everybody_passes_at_once(make: Callable[[str], Pace]) -> None:
    pace = make("")
    assert [await pace.turn("primary") for _ in range(100)] == [None] * 100


async def test_one_after_the_other_in_their_order(make: Callable[[str], Pace]) -> None:
    pace, passed = make('rate = "20/s"'), []

    async def ask(number: int) -> None:
        assert await pace.turn("primary") is None
        passed.append((number, asyncio.get_running_loop().time()))

    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(ask(number) for number in range(12)))
    assert [number for number, _ in passed] == list(range(12))
    assert passed[-1][1] - began >= 11 / 20 - 0.01


async def test_urgent_mail_goes_first(make: Callable[[str], Pace]) -> None:
    pace = make('rate = "5/s"')
    ordinary = _ask(pace, 8)
    await asyncio.sleep(0)
    urgent = _ask(pace, 1, stream="transactional")
    await asyncio.wait(urgent, timeout=0.5)
    assert urgent[0].done()
    assert not ordinary[-1].done()


async def test_what_would_wait_for_long_is_sent_back_at_once(make: Callable[[str], Pace]) -> None:
    pace = make('limits = ["3/h"]')
    turns = _ask(pace, 5)
    assert await _soon(*turns) == [True] * 5
    holds = [hold for turn in turns if (hold := turn.result()) is not None]
    assert len(holds) == 2
    assert all(hold.is_servers and hold.wait_seconds > 50 for hold in holds)
    assert holds[1].wait_seconds > holds[0].wait_seconds + 50
    assert holds[0].reason == "the limit of 3/h"


async def test_a_full_domain_holds_up_no_other(make: Callable[[str], Pace]) -> None:
    pace = make('[servers.domain_limits]\n"a.example" = "1/s"')
    full = _ask(pace, 20, "a.example")
    await asyncio.sleep(0)
    others = _ask(pace, 20, "b.example")
    assert await _soon(*others) == [True] * 20
    assert not all(await _soon(*full, seconds=0.01))


async def test_a_domains_line_is_short_and_the_rest_comes_back_spread_out(
    make: Callable[[str], Pace],
) -> None:
    pace = make('[limits]\n"a.example" = "2/s"')
    turns = _ask(pace, 10, "a.example")
    await asyncio.sleep(0.05)
    holds = [hold for turn in turns if turn.done() and (hold := turn.result()) is not None]
    assert len(holds) == 6
    assert not any(hold.is_servers for hold in holds)
    waits = [hold.wait_seconds for hold in holds]
    assert waits == pytest.approx([2.0 + 0.5 * place for place in range(6)], abs=0.1)


async def test_who_gave_up_takes_nobodys_place(make: Callable[[str], Pace]) -> None:
    pace = make('rate = "10/s"')
    turns = _ask(pace, 3)
    await asyncio.sleep(0.02)
    turns[1].cancel()
    assert await _soon(*turns, seconds=0.15) == [True, True, True]
    assert turns[2].result() is None


async def test_what_was_not_sent_after_all_is_given_back(make: Callable[[str], Pace]) -> None:
    pace = make('limits = ["1/h"]')
    assert await pace.turn("primary") is None
    pace.give_back("primary")
    await asyncio.sleep(0.1)
    assert await pace.turn("primary") is None
    assert await pace.turn("primary") is not None


class _Stumbling(Limits):
    stumbles = 1

    def take_all(self, requests: Sequence[Request]) -> list[Grant]:
        if self.stumbles:
            self.stumbles -= 1
            raise ValueError("a surprise")
        return super().take_all(requests)


async def test_a_surprise_costs_a_moment_and_holds_up_nobody_for_ever(make: Callable[[str], Pace]) -> None:
    pace = make('rate = "10/s"')
    pace._limits = _Stumbling(None)
    assert await asyncio.wait_for(pace.turn("primary"), 5.0) is None


async def test_a_warm_up_that_ends_today_is_waited_for_until_midnight(tmp_path: Path) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_text(BASE + "[servers.warm_up]\nstart = 1970-01-03\nper_day = [5]", encoding="utf-8")
    quotas = Quotas(load_settings(file, {}), clock=lambda: 2 * 86400 - 30.0)
    pace = Pace(quotas, Limits(None, memory=_Nothing()), lambda _: 1)
    hold = await pace.turn("primary")
    await pace.close()
    assert hold is not None
    assert hold.wait_seconds == pytest.approx(30, abs=1)


class _Used:
    """The memory of a ledger in which so many mails went to a domain an hour ago."""

    name = "used"

    def __init__(self, count: int) -> None:
        self._count = count

    def read(self) -> list[tuple[Limit, list[tuple[float, int]]]]:
        return [(Limit.of("domain:a.example", 0, 86_400, ""), [(3_600.0, self._count)])]


async def test_a_part_of_the_day_that_is_used_up_alone_is_asked_for_again_before_long(tmp_path: Path) -> None:
    """What the others left of theirs is known a minute later."""
    file = tmp_path / "campaigns.toml"
    file.write_text(BASE + '[limits]\n"a.example" = ["15/s", "30000/d"]', encoding="utf-8")
    pace = Pace(Quotas(load_settings(file, {})), Limits(None, memory=_Used(29_999)), lambda _: 4)
    holds = [await pace.turn("primary", "a.example") for _ in range(43)]
    await pace.close()
    waits = [hold.wait_seconds for hold in holds if hold is not None]
    assert len(waits) == 43
    assert max(waits) <= 120


async def test_a_line_that_is_long_enough_sends_nobody_away_for_long(tmp_path: Path) -> None:
    """This process's mail may be all that there is, however many share the limit."""
    file = tmp_path / "campaigns.toml"
    file.write_text(BASE + '[limits]\n"a.example" = "2/s"', encoding="utf-8")
    pace = Pace(Quotas(load_settings(file, {})), Limits(None, memory=_Nothing()), lambda _: 8)
    turns = _ask(pace, 30)
    await asyncio.sleep(0.05)
    waits = [hold.wait_seconds for turn in turns if turn.done() and (hold := turn.result()) is not None]
    await pace.close()
    assert len(waits) >= 28
    assert max(waits) <= 12.5
