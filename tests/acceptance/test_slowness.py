"""A primary that falls silent in mid-campaign, with real workers."""

import time

from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually

SLOW_SECONDS = 2.0


def opened_at(place: Place) -> float | None:
    events = [event for event in place.breaker_events() if event.server == "primary"]
    return events[0].at if events else None


def test_a_primary_that_falls_silent_costs_the_time_after_which_a_reply_is_late_and_little_more(
    new_place: Places,
) -> None:
    place = new_place(
        tables=f"[breaker]\nslow_seconds = {SLOW_SECONDS}", delivery="lease_seconds = 3\ndot_seconds = 8"
    )
    place.start_workers()
    emails = addresses(4_000)
    place.send("spring", emails)
    eventually(lambda: len(place.primary.records()) > 300, what=place.logs)
    place.primary.suspend()
    silent_at = time.time()
    eventually(lambda: opened_at(place) is not None, seconds=SLOW_SECONDS + 5, what=place.logs)
    opened = opened_at(place)
    assert opened is not None
    print(f"silent for {opened - silent_at:.2f} s before the breaker opened")
    assert opened - silent_at < SLOW_SECONDS + 1.5
    place.wait_until_finished("spring", seconds=60)
    place.primary.resume()
    counts = place.judge("spring", emails)
    assert counts.states["uncertain"] <= 10, "at most what was between dot and reply"
