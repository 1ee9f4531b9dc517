"""What a worker keeps of the campaigns that it sends, and what it forgets."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from campaigns.database import Database
from campaigns.ledger import CampaignRecord, Ledger
from workers.letters import Letters


class _Counting(Ledger):
    """Counts what is read, and holds up whoever reads one campaign."""

    read: Counter[str]
    slow: str = ""
    may_go_on: threading.Event

    def campaign(self, name: str) -> CampaignRecord:
        self.read[name] += 1
        if name == self.slow:
            assert self.may_go_on.wait(20)
        return super().campaign(name)


@pytest.fixture
def ledger(database: Database) -> _Counting:
    ledger = _Counting(database)
    ledger.read, ledger.may_go_on = Counter(), threading.Event()
    for name in "abcd":
        ledger.create_campaign(name, sender="News <news@example.org>", subject="Hi", text="Hello")
    return ledger


async def ask(letters: Letters, names: str) -> None:
    for name in names:
        letter = await letters.of_campaign(name)
        assert letter is not None and letter.name == name


async def test_a_letter_is_read_once_for_all_that_ask_at_the_same_time(ledger: _Counting) -> None:
    letters = Letters(ledger)
    await asyncio.gather(*(ask(letters, "abab") for _ in range(20)))
    assert ledger.read == {"a": 1, "b": 1}


async def test_what_was_asked_for_last_is_forgotten_last(ledger: _Counting) -> None:
    letters = Letters(ledger, most_campaigns=3)
    await ask(letters, "abcad")
    assert repr(letters) == "<Letters: 3 campaigns>"
    await ask(letters, "acd")
    assert ledger.read == {"a": 1, "b": 1, "c": 1, "d": 1}
    await ask(letters, "b")
    assert ledger.read["b"] == 2


async def test_long_letters_are_forgotten_sooner(ledger: _Counting) -> None:
    long = "x" * 1_000
    for name in ("long", "longer"):
        ledger.create_campaign(name, sender="News <news@example.org>", subject="Hi", text=long, html=long)
    letters = Letters(ledger, most_characters=2_500)
    await ask(letters, "abcd")
    assert await letters.of_campaign("long")
    await ask(letters, "abcd")
    assert set(ledger.read.values()) == {1}
    for name in ("longer", "long", "longer"):
        assert await letters.of_campaign(name)
    assert (ledger.read["long"], ledger.read["longer"]) == (2, 2)


async def test_a_letter_that_is_longer_than_all_may_be_is_kept_alone(ledger: _Counting) -> None:
    letters = Letters(ledger, most_characters=1)
    await ask(letters, "aab")
    assert ledger.read == {"a": 1, "b": 1}


async def test_a_letter_that_takes_long_to_read_holds_up_no_other(ledger: _Counting) -> None:
    ledger.slow = "a"
    letters = Letters(ledger)
    slow = asyncio.create_task(ask(letters, "a"))
    try:
        await asyncio.wait_for(ask(letters, "bcd"), 10)
        assert not slow.done()
    finally:
        ledger.may_go_on.set()
    await slow


async def test_a_campaign_that_is_not_there_is_not_asked_for_each_time(ledger: _Counting) -> None:
    letters = Letters(ledger)
    assert [await letters.of_campaign("nobody") for _ in range(3)] == [None, None, None]
    assert ledger.read == {"nobody": 1}
