"""Streams and shares with real workers, servers and a real broker."""

from campaigns.states import State
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually

CROWD = 5_000


def test_transactional_mail_overtakes_a_running_campaign(place: Place) -> None:
    for server in (place.primary, place.secondary):
        server.set("dot", "delay", seconds=0.2)
    place.start_workers()
    place.send("spring", addresses(CROWD))
    place.campaign("password", ["ada@example.org"], stream="transactional")
    eventually(lambda: place.count("spring", State.SENT) >= 100, what=place.logs)
    eventually(lambda: place.count("spring", State.QUEUED) >= 80, what=place.logs)  # more than workers hold
    for server in (place.primary, place.secondary):
        server.suspend()
    states = place.counts("spring").states
    place.ledger.send("password")
    eventually(lambda: place.count("password", State.PENDING) == 0, what=place.logs)
    for server in (place.primary, place.secondary):
        server.resume()
    eventually(lambda: place.count("password", State.SENT) == 1, what=place.logs)
    in_order = [mail.recipient for mail in sorted(place.accepted(), key=lambda mail: mail.at)]
    queued_before = sum(
        states[state] for state in (State.SENT, State.COMMITTING, State.CLAIMED, State.QUEUED)
    )
    ahead = in_order.index("ada@example.org")
    assert ahead < queued_before, "not even what was queued before it went after it"
    place.ledger.cancel("spring")


def test_a_stream_has_weights_of_its_own(new_place: Places) -> None:
    place = new_place(tables="[streams]\ntransactional = { secondary = 90, primary = 10 }")
    place.start_workers()
    emails = addresses(200)
    place.campaign("receipts", emails, stream="transactional")
    place.ledger.send("receipts")
    place.wait_until_finished("receipts")
    assert_share(place.judge("receipts", emails).servers["secondary"].sent, 180)


def test_by_capacity_a_fast_server_carries_what_a_slow_one_cannot(place: Place) -> None:
    place.primary.set("dot", "delay", seconds=2.0)
    emails = addresses(600)
    place.start_workers()
    place.send("spring", emails)
    place.wait_until_finished("spring")
    place.judge("spring", emails)
    servers = place.counts("spring").servers
    assert servers["secondary"].sent > 400, f"by its weight it would be 180: {servers}"


def test_by_weights_the_fast_server_waits_for_the_slow_one(new_place: Places) -> None:
    place = new_place(top='sharing = "weights"')
    place.primary.set("dot", "delay", seconds=0.5)
    emails = addresses(400)
    place.start_workers()
    place.send("spring", emails)
    place.wait_until_finished("spring")
    assert_share(place.judge("spring", emails).servers["primary"].sent, 280)


def assert_share(sent: int, expected: int) -> None:
    """Each of the two workers that split the campaign rounds for itself, by one mail at most."""
    assert abs(sent - expected) <= 2
