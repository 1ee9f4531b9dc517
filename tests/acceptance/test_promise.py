"""The promise, with real workers, a real broker, and mail servers that die, lie and dawdle."""

import time
from collections import Counter
from collections.abc import Callable

import redis
from sqlalchemy import text

from campaigns.states import State, Status
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually


def test_everybody_gets_one_mail_when_the_primary_dies_in_mid_campaign(either_place: Place) -> None:
    place, emails = either_place, addresses(1_500)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: len(place.primary.records()) >= 300, what=place.logs)
    place.primary.kill()
    place.wait_until_finished("spring")
    counts = place.judge("spring", emails)
    assert counts.states[State.SENT] + counts.states[State.UNCERTAIN] == len(emails)
    assert counts.states[State.UNCERTAIN] <= 10, "no more than its connections were between dot and reply"
    assert counts.servers["primary"].rerouted > 0
    events = place.ledger.events(server="primary")
    assert [event.to_state for event in events][:1] == ["open"]


def test_the_primary_gets_its_share_back_in_steps_when_it_returns(new_place: Places) -> None:
    place = new_place(tables="[breaker]\nfailback_seconds = 0.5")
    place.start_workers()
    place.primary.kill()
    place.send("before", addresses(100))
    place.wait_until_finished("before")
    place.primary.start()
    for number in range(60):  # it is tried with real mails alone
        place.send(f"between-{number}", addresses(40, f"b{number}"))
        place.wait_until_finished(f"between-{number}")
        if _states(place)[-1] == "100 %":
            break
    assert _states(place)[-5:] == ["half-open", "closed", "25 %", "50 %", "100 %"]
    emails = addresses(1_000, "later")
    place.send("after", emails)
    place.wait_until_finished("after")
    place.judge("after", emails)
    assert place.counts("after").servers["primary"].sent > 300


def _states(place: Place) -> list[str | None]:
    """What became of the primary, each change once."""
    return [event.to_state for event in place.ledger.events(server="primary")]


def test_weights_of_70_and_30_split_a_campaign_70_to_30(place: Place) -> None:
    emails = addresses(2_000)
    place.start_workers()
    place.send("spring", emails)
    place.wait_until_finished("spring")
    place.judge("spring", emails)
    assert abs(place.counts("spring").servers["primary"].sent - 1_400) <= 20


def test_a_550_never_reroutes(place: Place) -> None:
    emails = addresses(40, "rcpt-550-5.1.1") + addresses(40)
    place.start_workers()
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    place.judge("spring", emails)
    assert (counts.states[State.FAILED], counts.states[State.SENT]) == (40, 40)
    assert all(server.rerouted == 0 for server in counts.servers.values())
    with place.database.read() as connection:
        tries = connection.execute(text("SELECT count(*) FROM attempt WHERE outcome = 'rejected'"))
        assert tries.scalar_one() == 40, "one attempt each, on one server"
    assert place.breaker_events() == [], "one bad address condemns no server"
    failed = next(iter(place.ledger.deliveries("spring", State.FAILED)))
    assert failed.reply is not None
    assert failed.reply.startswith("550")
    assert "@" not in failed.reply


def test_a_worker_that_is_killed_in_mid_send_loses_nobody_and_serves_nobody_twice(
    either_place: Place,
) -> None:
    place, emails = either_place, addresses(600)
    for server in (place.primary, place.secondary):
        server.set("dot", "delay", seconds=0.05)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 100, what=place.logs)
    place.kill(place.workers[0])
    place.start_worker("primary")
    place.wait_until_finished("spring")
    counts = place.judge("spring", emails)
    assert counts.states[State.SENT] + counts.states[State.UNCERTAIN] == len(emails)
    assert counts.states[State.UNCERTAIN] <= 10


def test_workers_that_are_killed_again_and_again_do_not_stop_a_campaign(place: Place) -> None:
    emails = addresses(800)
    for server in (place.primary, place.secondary):
        server.set("body", "delay", seconds=0.05, after=1)
    place.start_workers()
    place.send("spring", emails)
    for killed in range(3):
        goal = 100 * (killed + 1)
        eventually(lambda goal=goal: place.count("spring", State.SENT) >= goal, what=place.logs)
        place.kill(place.workers[-1])
        place.start_worker("primary", "secondary")
    place.wait_until_finished("spring")
    place.judge("spring", emails)


def test_an_accepted_mail_without_a_reply_is_uncertain_and_appears_on_no_other_server(place: Place) -> None:
    odd = addresses(12, "dot-accept-drop")
    place.start_workers()
    place.send("spring", odd + addresses(50))
    counts = place.wait_until_finished("spring")
    place.judge("spring", odd + addresses(50))
    assert counts.states[State.UNCERTAIN] == len(odd)
    times = Counter(mail.recipient for mail in place.accepted())
    assert [times[email] for email in odd] == [1] * len(odd)


def test_both_servers_may_be_down_for_longer_than_any_retry_could_count(new_place: Places) -> None:
    place = new_place(
        delivery='lease_seconds = 3\nconnect_seconds = 1\nretry_after = ["1s"]\ngive_up_after = "4s"'
    )
    emails = addresses(300)
    place.start_workers()
    place.primary.kill()
    place.secondary.kill()
    place.send("spring", emails)
    time.sleep(12)
    assert place.counts("spring").alive == len(emails), "nobody is failed, and nobody sent"
    place.primary.start()
    place.secondary.start()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)


def test_pause_stops_what_is_queued_and_what_is_stuck_in_its_body(new_place: Places) -> None:
    place, emails = _stopped_in_mid_campaign(new_place, lambda place: place.ledger.pause("spring"))
    assert place.counts("spring").status is Status.PAUSED
    for server in (place.primary, place.secondary):
        server.clear()
    place.ledger.resume("spring")
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)


def test_cancel_stops_what_is_queued_and_what_is_stuck_in_its_body(new_place: Places) -> None:
    place, emails = _stopped_in_mid_campaign(new_place, lambda place: place.ledger.cancel("spring"))
    for server in (place.primary, place.secondary):
        server.clear()
    eventually(lambda: place.counts("spring").alive == 0, what=place.logs)
    counts = place.judge("spring", emails)
    assert counts.status is Status.CANCELLED
    assert counts.states[State.SENT] + counts.states[State.CANCELLED] == len(emails)
    assert counts.states[State.CANCELLED] > 0


def _stopped_in_mid_campaign(new_place: Places, stop: Callable[[Place], object]) -> tuple[Place, list[str]]:
    """Thousands are queued; each connection is stuck before its dot, in a body that is read slowly.

    The kernel's buffers are small and the letter is large, so that nobody gets to the dot before the server
    has read on; what is then at its commit point must not pass it.
    """
    place, emails = (
        new_place(
            delivery="lease_seconds = 20\nconnect_seconds = 2",
            server_options=("--receive-buffer", "4096"),
            body="Dear {{ name }},\n"
            + "a line of a long letter, which fills every buffer on its way\n" * 300,
        ),
        addresses(3_000),
    )
    place.start_workers()
    for server in (place.primary, place.secondary):
        server.set("body", "delay", seconds=2.5, after=1)
    place.send("spring", emails)
    eventually(
        lambda: place.count("spring", State.CLAIMED) >= 15 and place.count("spring", State.COMMITTING) == 0,
        what=place.logs,
    )
    stop(place)
    time.sleep(2)
    accepted = place.accepted_count()
    time.sleep(4)
    assert place.accepted_count() == accepted, "accepted although the campaign was stopped"
    assert accepted < len(emails)
    return place, emails


def test_a_campaign_finishes_although_the_broker_is_flushed(place: Place) -> None:
    emails = addresses(1_500)
    place.start_workers()
    place.send("spring", emails)
    with redis.Redis(unix_socket_path=str(place.settings.broker_socket)) as client:
        for goal in (200, 600):
            eventually(lambda goal=goal: place.count("spring", State.SENT) >= goal, what=place.logs)
            client.flushall()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)


def test_a_campaign_finishes_although_the_broker_dies_and_comes_back_empty(place: Place) -> None:
    emails = addresses(1_000)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 200, what=place.logs)
    place.broker.kill()
    for file in (place.settings.data_directory / "valkey" / "appendonlydir").glob("*"):
        file.unlink()
    time.sleep(2)
    place.broker.start()
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)


def test_a_worker_that_sleeps_through_its_lease_in_mid_body_sends_no_second_mail(either_place: Place) -> None:
    place, emails = either_place, addresses(60)
    place.start_workers()
    place.primary.set("data", "delay", seconds=2.0)
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.CLAIMED) >= 8, what=place.logs)
    with place.stopped(place.workers[0]):
        eventually(
            lambda: place.count("spring", State.SENT) + place.count("spring", State.UNCERTAIN) == len(emails),
            seconds=60,
            what=place.logs,
        )
    time.sleep(5)
    counts = place.judge("spring", emails)
    assert counts.states[State.SENT] + counts.states[State.UNCERTAIN] == len(emails)
    assert len(place.secondary.records()) > 30, "the sleeper's mail went out elsewhere"


def test_a_worker_that_is_ended_warmly_gives_its_mail_back_at_once(place: Place) -> None:
    emails = addresses(300)
    for server in (place.primary, place.secondary):
        server.set("body", "delay", seconds=0.3, after=1)
    place.start_workers()
    place.send("spring", emails)
    eventually(lambda: place.count("spring", State.SENT) >= 20, what=place.logs)
    place.workers[0].terminate()
    assert place.workers[0].wait(20) == 0
    with place.database.read() as connection:
        held = connection.execute(
            text(
                "SELECT count(*) FROM delivery"
                " WHERE server = 'primary' AND state IN ('claimed', 'committing')"
            )
        )
        assert held.scalar_one() == 0
    place.start_worker("primary")
    place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == len(emails)
