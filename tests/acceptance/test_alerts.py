"""Real workers tell the operator, by a real webhook and through whichever mail server works."""

from tests.acceptance.conftest import Places
from tests.acceptance.place import addresses, eventually
from tests.webhook_server import WebhookServer

ALERTS = """lease_seconds = 3
connect_seconds = 2
[alerts]
webhook = "{url}"
email = "ops@example.org"
sender = "Campaigns <robot@example.org>"
every = "2s"
"""


def test_the_operator_hears_of_a_dead_server_by_webhook_and_through_the_other(new_place: Places) -> None:
    with WebhookServer() as hook:
        place = new_place(delivery=ALERTS.format(url=hook.url))
        place.start_worker("primary")
        place.start_worker("secondary")
        place.start_worker("primary", "secondary")
        place.wait_for_workers(3)
        eventually(lambda: place.ledger.alert_record("email") and place.ledger.alert_record("webhook"))
        place.primary.kill()
        place.send("spring", emails := addresses(300))
        place.wait_until_finished("spring")

        def mails() -> list[str]:
            return [
                mail.recipient for mail in place.secondary.records() if mail.recipient == "ops@example.org"
            ]

        def told() -> list[tuple[str, str, str]]:
            return [(event["kind"], event["server"], event["to"]) for event in hook.events]

        eventually(lambda: ("breaker", "primary", "open") in told() and mails(), what=place.logs)
        place.judge("spring", emails)
        ids = [event["id"] for event in hook.events]
        assert len(ids) == len(set(ids)), "three workers, and nobody told it twice"
        assert "zyxwv" not in place.logs(lines=10_000)


def test_a_webhook_that_hangs_delays_no_campaign(new_place: Places) -> None:
    with WebhookServer() as hook:
        hook.silent.set()
        place = new_place(delivery=ALERTS.format(url=hook.url))
        place.start_workers()
        eventually(lambda: place.ledger.alert_record("webhook"))
        place.ledger.record_event("probe", server="primary", from_state="ok", to_state="failing")
        assert hook.asked.wait(20)
        place.send("spring", emails := addresses(300))
        place.wait_until_finished("spring", seconds=20)
        assert hook.received == []
        place.judge("spring", emails)
