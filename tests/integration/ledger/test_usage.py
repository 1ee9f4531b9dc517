"""What went out lately, told by the ledger on both databases."""

from __future__ import annotations

from sqlalchemy import text

from campaigns.ledger import Ledger, UsageRecord
from campaigns.states import State
from tests.crowd import Crowd, new_recipients


def _crowd(ledger: Ledger, size: int, domain: str) -> Crowd:
    crowd = Crowd(ledger, 0)
    ledger.add_recipients(crowd.campaign_id, new_recipients(size, domain=domain))
    crowd.ids = [delivery.id for delivery in ledger.deliveries(crowd.name)]
    return crowd


def _sent(crowd: Crowd, server: str, **changes: object) -> None:
    for claim in crowd.claim(server):
        crowd.report(claim, State.PENDING, server=server, outcome="deferred", **changes)


def _age(ledger: Ledger, crowd: Crowd, seconds: float) -> None:
    with ledger.database.write() as connection:
        sql = text("UPDATE attempt SET finished_at = finished_at - :seconds WHERE campaign_id = :id")
        connection.execute(sql, {"seconds": seconds, "id": crowd.campaign_id})


def _by_age(records: list[UsageRecord]) -> dict[tuple[str, str | None, float], int]:
    counts: dict[tuple[str, str | None, float], int] = {}
    for record in records:
        key = (record.server, record.domain, record.age_seconds)
        counts[key] = counts.get(key, 0) + record.count
    return counts


def test_attempts_are_counted_by_server_and_age(ledger: Ledger) -> None:
    now, before, long_ago = (_crowd(ledger, size, f"d{size}.example.com") for size in (1, 2, 4))
    _sent(now, "primary")
    _sent(before, "secondary")
    _sent(long_ago, "primary")
    _age(ledger, before, 630.0)
    _age(ledger, long_ago, 3700.0)
    assert _by_age(ledger.usage(3660, 60)) == {("primary", None, 0.0): 1, ("secondary", None, 600.0): 2}


def test_what_is_under_way_is_counted_too_and_once(ledger: Ledger) -> None:
    crowd = _crowd(ledger, 3, "example.com")
    claims = crowd.claim("primary")
    assert _by_age(ledger.usage(3660, 60)) == {("primary", None, 0.0): 3}
    for claim in claims:
        crowd.report(claim, State.PENDING)
    assert _by_age(ledger.usage(3660, 60)) == {("primary", None, 0.0): 3}


def test_what_the_server_was_never_asked_to_take_counts_nothing(ledger: Ledger) -> None:
    for phase, code in (("connect", None), ("auth", 535), ("mail", 421), ("rcpt", None)):
        _sent(_crowd(ledger, 1, "example.com"), "primary", phase=phase, code=code)
    assert ledger.usage(3660, 60) == []
    _sent(_crowd(ledger, 1, "example.com"), "primary", phase="rcpt", code=450)
    assert _by_age(ledger.usage(3660, 60)) == {("primary", None, 0.0): 1}


def test_by_domain_only_those_that_are_asked_for(ledger: Ledger) -> None:
    for size, domain in ((1, "a.example"), (2, "b.example"), (4, "c.example")):
        _sent(_crowd(ledger, size, domain), "primary")
    named = ledger.usage_by_domain(3660, 60, {"a.example", "b.example"})
    assert _by_age(named) == {("primary", "a.example", 0.0): 1, ("primary", "b.example", 0.0): 2}
    assert sum(record.count for record in ledger.usage_by_domain(3660, 60)) == 7


def test_the_domains_of_deliveries(ledger: Ledger) -> None:
    crowd = _crowd(ledger, 2, "a.example")
    assert ledger.domains_of([*crowd.ids, 999]) == dict.fromkeys(crowd.ids, "a.example")


def test_what_is_queued_by_server_and_domain(ledger: Ledger) -> None:
    _crowd(ledger, 3, "a.example").queue("primary")
    _crowd(ledger, 2, "b.example").queue("secondary")
    _crowd(ledger, 1, "a.example")
    assert ledger.queued_by_domain({"a.example", "c.example"}) == {("primary", "a.example"): 3}
