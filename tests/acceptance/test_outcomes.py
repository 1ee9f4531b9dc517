"""What each outcome leads to, with real workers: who is tried again, where, and who is blamed."""

from collections import Counter

from sqlalchemy import text

from campaigns.states import State, Status
from tests.acceptance.conftest import Places
from tests.acceptance.place import Place, addresses, eventually

QUICK = 'lease_seconds = 3\nconnect_seconds = 2\nretry_after = ["1s"]'


def _attempts(place: Place) -> Counter[tuple[str, str]]:
    """How many attempts ended how, by (outcome, server)."""
    with place.database.read() as connection:
        return Counter(
            (row.outcome, row.server)
            for row in connection.execute(text("SELECT outcome, server FROM attempt"))
        )


def test_a_greylisted_mail_is_tried_again_through_the_same_server(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK), addresses(30, "greylist")
    place.start_workers()
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 30
    assert all(server.rerouted == 0 for server in counts.servers.values())
    assert {delivery.deferrals for delivery in place.ledger.deliveries("spring")} == {1}
    tries = _attempts(place)
    assert tries["deferred", "primary"] == tries["sent", "primary"]
    assert place.breaker_events() == [], "greylisting condemns no server"


def test_a_recipient_that_is_deferred_for_too_long_fails(new_place: Places) -> None:
    place = new_place(delivery=QUICK + '\ngive_up_after = "3s"')
    emails = addresses(3, "rcpt-450-4.2.2") + addresses(20)
    place.start_workers()
    place.send("spring", emails)
    place.wait_until_finished("spring")
    states = place.judge("spring", emails).states
    assert (states[State.FAILED], states[State.SENT]) == (3, 20)


def test_a_full_server_is_spared_and_is_not_called_broken(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK), addresses(300)
    place.start_workers()
    place.primary.set("mail", "reply", reply="454 4.7.0 Throttling failure: Maximum sending rate exceeded.")
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 300
    assert counts.servers["secondary"].sent == 300
    assert place.breaker_events() == []
    assert {delivery.deferrals for delivery in place.ledger.deliveries("spring")} == {0}
    assert _attempts(place)["full", "primary"] < 100, "the rest never tried it"


def test_recipients_that_are_told_full_keep_nobody_elses_mail_waiting(new_place: Places) -> None:
    place, odd, emails = new_place(delivery=QUICK), addresses(2, "rcpt-452-4.5.3"), addresses(300)
    place.start_workers()
    place.send("odd", odd)
    eventually(lambda: _attempts(place)["full", "primary"] and _attempts(place)["full", "secondary"])
    place.send("spring", [*emails[:150], *addresses(2, "dot-452-4.5.3"), *emails[150:]])
    eventually(lambda: place.ledger.counts("spring").states[State.SENT] == 300)
    for name in ("odd", "spring"):
        eventually(lambda name=name: place.ledger.counts(name).states[State.PENDING] == 2)  # type: ignore[misc]
        place.ledger.cancel(name)
    assert [event for event in place.ledger.events() if event.to_state == "full"] == []


def test_a_server_that_answers_421_is_given_up_by_all(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK), addresses(400)
    place.start_workers()
    place.primary.set("mail", "reply", reply="421 4.3.2 Service shutting down")
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 400
    assert counts.servers["secondary"].sent == 400
    assert [event.to_state for event in place.ledger.events(server="primary")][:1] == ["open"]
    assert _attempts(place)["unreachable", "primary"] < 100


def test_a_sender_that_one_server_refuses_goes_out_through_the_other(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK), addresses(300)
    place.start_workers()
    place.primary.set("mail", "reply", reply="553 5.7.1 Sender address rejected: not owned by user")
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    assert place.judge("spring", emails).states[State.SENT] == 300
    assert counts.servers["secondary"].sent == 300
    assert {block.server for block in place.ledger.blocks()} == {"primary"}
    assert _attempts(place)["policy", "primary"] < 150, "the rest never tried it"


def test_a_sender_that_both_servers_refuse_pauses_the_campaign(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK), addresses(300)
    place.start_workers()
    for server in (place.primary, place.secondary):
        server.set("rcpt", "reply", reply="550 5.7.26 Unauthenticated email is not accepted (DMARC)")
    place.send("spring", emails)
    eventually(lambda: place.counts("spring").status is Status.PAUSED, what=place.logs)
    counts = place.judge("spring", emails)
    assert counts.reason is not None
    assert "primary" in counts.reason
    assert "secondary" in counts.reason
    assert counts.states[State.FAILED] < 30, "the list is not burnt"


def test_one_odd_receiver_fails_its_own_mail_alone(new_place: Places) -> None:
    place = new_place(delivery=QUICK)
    emails = ["rcpt-550-5.7.26+1@odd.example", "rcpt-550-5.7.26+2@odd.example", *addresses(50)]
    place.start_workers()
    place.send("spring", emails)
    place.wait_until_finished("spring")
    states = place.judge("spring", emails).states
    assert (states[State.FAILED], states[State.SENT]) == (2, 50)
    assert place.ledger.blocks() == []


def test_what_is_uncertain_is_sent_again_only_where_that_was_asked_for(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK + '\non_uncertain = "resend"'), addresses(40)
    place.start_workers()
    place.primary.set("dot", "accept-drop", times=3)
    place.send("spring", emails)
    counts = place.wait_until_finished("spring")
    assert counts.states[State.SENT] == 40
    twice = Counter(mail.recipient for mail in place.accepted())
    assert sorted(twice.values())[-4:] == [1, 2, 2, 2]


def test_an_operator_may_have_failed_and_uncertain_mail_tried_again(new_place: Places) -> None:
    place, emails = new_place(delivery=QUICK + "\ndot_seconds = 2"), addresses(40)
    place.start_workers()
    place.primary.set("dot", "accept-drop", times=2)
    place.secondary.set("rcpt", "reply", reply="550 5.1.1 No such user", times=2)
    place.send("spring", emails)
    states = place.wait_until_finished("spring").states
    assert (states[State.UNCERTAIN], states[State.FAILED]) == (2, 2)
    place.ledger.retry("spring", State.FAILED)
    place.ledger.retry("spring", State.UNCERTAIN)
    assert place.wait_until_finished("spring").states[State.SENT] == 40


def test_a_server_with_a_rate_keeps_to_it(new_place: Places) -> None:
    place = new_place(delivery=QUICK, rate='rate = "40/s"')
    place.start_workers()
    place.send("spring", addresses(240))
    place.wait_until_finished("spring")
    for server in (place.primary, place.secondary):
        times = sorted(mail.at for mail in server.records())
        # over the whole: a disk that stalls bunches what it records, though it was let pass evenly
        assert times[-1] - times[0] >= len(times) / 40 - 1.0, "no more a second, but for the burst"
