"""Mail that waits for a dead server is moved in bulk: much of it costs no more, each, than little of it.

Held against the same machine's own speed at the same moment, for no time in seconds is true of every machine;
`python -m bench.moving` measures those.
"""

import time
from collections.abc import Callable

from campaigns.ledger import Ledger
from tests.crowd import Crowd

WAITING = 20_000
MOST_RATIO = 4.0
"""How much longer than to give mail its first server it may take to give it another."""


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def move(ledger: Ledger, count: int) -> None:
    moved = 0
    while moved < count:
        moved += len(ledger.reroute_queued("primary", {"secondary": 30.0}))


def test_20_000_waiting_deliveries_move_about_as_fast_as_they_were_given(ledger: Ledger) -> None:
    crowd = Crowd(ledger, WAITING)
    given_seconds = seconds_of(lambda: crowd.queue("primary"))
    first_seconds = seconds_of(lambda: move(ledger, WAITING // 2))
    second_seconds = seconds_of(lambda: move(ledger, WAITING // 2))
    assert ledger.queued_counts() == {"secondary": WAITING}
    assert ledger.reroute_queued("primary", {"secondary": 30.0}) == []
    assert first_seconds + second_seconds < MOST_RATIO * given_seconds
    assert second_seconds < MOST_RATIO * first_seconds, "what was moved already stands in the way"
