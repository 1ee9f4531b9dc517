"""A primary that takes fewer connections than are configured, with real workers."""

import time

from campaigns.states import State
from tests.acceptance.conftest import Places
from tests.acceptance.place import addresses, eventually

TAKEN, DOT_SECONDS = 5, 0.2


def test_a_server_with_a_cap_on_connections_is_kept_as_busy_as_it_allows_and_never_given_up(
    new_place: Places,
) -> None:
    place = new_place(
        connections=20, delivery="lease_seconds = 3", tables='[streams]\npromotional = ["primary"]'
    )
    place.primary.control({"most_connections": TAKEN})
    place.primary.set("dot", "delay", seconds=DOT_SECONDS)
    place.start_worker("primary")
    place.start_worker("primary")
    place.wait_for_workers(2)
    emails = addresses(300)
    place.send("spring", emails)
    eventually(place.primary.records, what=place.logs)
    began = time.monotonic()
    place.wait_until_finished("spring")
    seconds, least = time.monotonic() - began, len(emails) * DOT_SECONDS / TAKEN
    print(f"{seconds:.1f} s, and {least:.1f} s at the least")
    assert seconds < 3 * least
    assert place.judge("spring", emails).states[State.SENT] == len(emails)
    assert place.breaker_events() == [], "it is well"
    assert place.primary.stats()["refused"] > 0
    assert "refuses more connections than" in place.logs(lines=200)
