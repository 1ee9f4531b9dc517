"""What the workers tell the operator, through a real web server and the ledger of both databases."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text

from campaigns.alert_mail import send_alert_mail
from campaigns.alerts import Alert
from campaigns.database import create_database
from campaigns.ledger import Ledger, NewRecipient, TellableEvent
from campaigns.message import CampaignContent, RecipientContent, compile_campaign
from campaigns.policies import AlertPolicy
from campaigns.states import State, Status
from campaigns.webhook import NO_ANSWER
from tests.crowd import Crowd
from tests.webhook_server import WebhookServer
from workers.alerting import Alerting, alertings

POLICY = AlertPolicy(email="Ops <ops@example.com>", sender="Campaigns <robot@example.com>")


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


def happened(ledger: Ledger, to_state: str = "open", server: str = "primary", **changes: str) -> None:
    before = "closed" if to_state == "open" else "half-open"
    ledger.record_event("breaker", server=server, from_state=before, to_state=to_state, **changes)


def by_webhook(hook: WebhookServer, ledger: Ledger) -> Alerting:
    (channel,) = alertings(AlertPolicy(webhook=hook.url), ledger)
    return channel


def by_email(ledger: Ledger) -> Alerting:
    (channel,) = alertings(POLICY, ledger)
    return channel


def the_pause_is_over(ledger: Ledger) -> None:
    with ledger.database.write() as connection:
        connection.execute(text("UPDATE alert SET next_at = 1"))


def mails(ledger: Ledger) -> list[str]:
    return [campaign.name for campaign in ledger.campaigns("alert")]


def test_who_wants_no_alerts_gets_none(ledger: Ledger) -> None:
    assert alertings(AlertPolicy(), ledger) == []


async def test_the_history_is_not_told(ledger: Ledger, hook: WebhookServer) -> None:
    happened(ledger, reason="long ago")
    channel = by_webhook(hook, ledger)
    await channel.turn()
    assert hook.received == []
    happened(ledger, reason="now")
    await channel.turn()
    assert [event["reason"] for event in hook.events] == ["now"]


async def test_the_first_is_told_at_once_and_the_next_ones_after_the_pause_in_one(
    ledger: Ledger, hook: WebhookServer
) -> None:
    channel = by_webhook(hook, ledger)
    await channel.turn()
    happened(ledger)
    await channel.turn()
    assert len(hook.received) == 1
    happened(ledger, "closed")
    happened(ledger, server="secondary")
    await channel.turn()
    assert len(hook.received) == 1
    the_pause_is_over(ledger)
    await channel.turn()
    assert [event["to"] for event in hook.received[1]["events"]] == ["closed", "open"]
    the_pause_is_over(ledger)
    await channel.turn()
    assert len(hook.received) == 2, "nothing is told twice"


async def test_one_process_tells(ledger: Ledger) -> None:
    tellers = [Teller(Ledger(ledger.database)) for _ in range(5)]
    await tellers[0].channel.turn()
    happened(ledger)
    await asyncio.gather(*(teller.channel.turn() for teller in tellers))
    assert sum(len(teller.told) for teller in tellers) == 1


@dataclass
class Teller:
    """A process with a channel; `answers` are what its tries come to."""

    ledger: Ledger
    answers: Iterator[str] = field(default_factory=lambda: itertools.repeat(""))
    told: list[Alert] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channel = Alerting("webhook", self.ledger, self._tell, every_seconds=60.0)

    async def _tell(self, alert: Alert) -> str:
        answer = next(self.answers)
        if not answer:
            self.told.append(alert)
        return answer


async def test_who_vanishes_while_it_tells_is_replaced(ledger: Ledger) -> None:
    asked = asyncio.Event()

    async def hang(_: Alert) -> str:
        asked.set()
        await asyncio.Event().wait()
        return ""

    vanishing, other = Alerting("webhook", ledger, hang, every_seconds=60.0), Teller(ledger)
    await other.channel.turn()
    happened(ledger)
    task = asyncio.create_task(vanishing.turn())
    await asked.wait()
    await other.channel.turn()
    assert other.told == [], "it has 30 s for it"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    the_pause_is_over(ledger)
    await other.channel.turn()
    assert len(other.told) == 1


async def test_who_lost_its_turn_changes_nothing_any_more(ledger: Ledger) -> None:
    happened(ledger)
    record = ledger.begin_alerts("webhook")
    turn = ledger.take_alert(record, 30.0)
    assert turn is not None
    assert ledger.take_alert(record, 30.0) is None
    the_pause_is_over(ledger)
    before = ledger.alert_record("webhook")
    ledger.alert_told("webhook", turn, to_id=99, pause_seconds=60.0)
    ledger.alert_failed("webhook", turn, error="late", pause_seconds=60.0)
    ledger.pass_over_events(record, 99)
    after = ledger.alert_record("webhook")
    assert before is not None and after is not None
    assert (after.last_event_id, after.failures, after.next_at) == (before.last_event_id, 0, 1)


async def test_what_did_not_get_through_is_tried_again_with_what_came_since(
    ledger: Ledger, hook: WebhookServer, caplog: pytest.LogCaptureFixture
) -> None:
    channel = by_webhook(hook, ledger)
    await channel.turn()
    hook.status = 500
    happened(ledger)
    waits = []
    for _ in range(3):
        await channel.turn()
        record = ledger.alert_record("webhook")
        assert record is not None and record.error == "it answered 500 Internal Server Error"
        waits.append(record.next_at - record.now)
        await channel.turn()
        the_pause_is_over(ledger)
    assert [len(message["events"]) for message in hook.received] == [1, 1, 1], "and not more often"
    assert 3 < waits[0] < waits[1] < waits[2] < 25
    hook.status = 200
    happened(ledger, "closed")
    await channel.turn()
    assert len(hook.received[-1]["events"]) == 2
    record = ledger.alert_record("webhook")
    assert record is not None and (record.failures, record.error) == (0, None)
    assert "zyxwv" not in caplog.text and "zyxwv" not in repr(caplog.records)


async def test_news_behind_a_thousand_others_are_found(ledger: Ledger) -> None:
    teller = Teller(ledger)
    await teller.channel.turn()
    with ledger.database.write() as connection:
        connection.execute(
            text("INSERT INTO event (at, kind, campaign, to_state) VALUES (:at, 'campaign', 'x', 'running')"),
            [{"at": ledger.now() - 60}] * 2500,
        )
    happened(ledger)
    for _ in range(4):
        await teller.channel.turn()
    assert [len(alert.events) for alert in teller.told] == [1]


async def test_an_event_that_is_committed_behind_a_later_one_is_not_passed_over(postgres_url: str) -> None:
    database = create_database(postgres_url)
    ledger = Ledger(database)
    teller = Teller(ledger)
    await teller.channel.turn()
    slow = text(
        "INSERT INTO event (at, kind, server, from_state, to_state)"
        " VALUES (:at, 'breaker', 'a', 'closed', 'open')"
    )
    with database.write() as connection:
        connection.execute(slow, {"at": ledger.now()})
        await asyncio.to_thread(happened, ledger, server="b")
        await teller.channel.turn()
        assert teller.told == [], "the first is on its way"
    await teller.channel.turn()
    assert [event.server for alert in teller.told for event in alert.events] == ["a", "b"]
    database.close()


async def test_repetitions_wait_without_hiding_news(ledger: Ledger) -> None:
    teller = Teller(ledger)
    await teller.channel.turn()
    for _ in range(2):
        happened(ledger)
        happened(ledger, "closed")
    await teller.channel.turn()
    the_pause_is_over(ledger)
    for _ in range(3):
        happened(ledger)
        happened(ledger, "closed")
        await teller.channel.turn()
    await teller.channel.turn()
    assert len(teller.told) == 1
    happened(ledger, server="secondary")
    await teller.channel.turn()
    assert len(teller.told) == 2 and teller.told[1].events[-1].server == "secondary"


async def test_a_webhook_that_hangs_holds_up_neither_the_loop_nor_the_ledgers_threads(
    ledger: Ledger, hook: WebhookServer
) -> None:
    threads = 2
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
    channel = by_webhook(hook, ledger)
    await channel.turn()
    hook.silent.set()
    happened(ledger)
    turn = asyncio.create_task(channel.turn())
    assert await asyncio.to_thread(hook.asked.wait, 20)
    all_at_once = threading.Barrier(threads, timeout=5)
    await asyncio.gather(*(asyncio.to_thread(all_at_once.wait) for _ in range(threads)))
    assert not turn.done()
    (thread,) = (one for one in threading.enumerate() if one.name == "webhook")
    assert thread.daemon, "nor does the worker wait for it at its end"
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


async def test_an_answer_that_never_ends_is_given_up(ledger: Ledger, hook: WebhookServer) -> None:
    (channel,) = alertings(AlertPolicy(webhook=hook.url), ledger, webhook_seconds=0.5)
    await channel.turn()
    hook.slow.set()
    happened(ledger)
    await asyncio.wait_for(channel.turn(), 10)
    record = ledger.alert_record("webhook")
    assert record is not None and (record.failures, record.error) == (1, NO_ANSWER)


async def test_the_email_is_a_campaign_of_its_own(ledger: Ledger) -> None:
    channel = by_email(ledger)
    await channel.turn()
    happened(ledger, reason="550 {{ nobody }} <b> said: ${x} %s")
    await channel.turn()
    (name,) = mails(ledger)
    campaign = ledger.campaign(name)
    assert (campaign.status, campaign.stream, ledger.campaigns()) == (Status.RUNNING, "transactional", [])
    (delivery,) = ledger.deliveries(name)
    assert (delivery.email, delivery.state) == ("ops@example.com", State.PENDING)
    body = rendered(ledger, name)
    assert "From: Campaigns <robot@example.com>" in body and "Auto-Submitted: auto-generated" in body
    assert "Subject: [campaigns] primary: given up\r\n" in body
    assert "primary: given up (550 {{ nobody }} <b> said: ${x} %s)" in body


def rendered(ledger: Ledger, name: str) -> str:
    campaign = ledger.campaign(name)
    with ledger.database.read() as connection:
        row = connection.execute(
            text("SELECT id, email, fields FROM recipient WHERE campaign_id = :id"), {"id": campaign.id}
        ).one()
    fields = row.fields if isinstance(row.fields, dict) else json.loads(row.fields)
    message = compile_campaign(
        CampaignContent(
            subject=campaign.subject,
            sender=campaign.sender,
            token=campaign.token,
            text=campaign.text,
            headers=campaign.headers,
        )
    )
    recipient = RecipientContent(delivery_id=row.id, email=row.email, fields=fields)
    return message.render(recipient, 0.0).body.decode()


async def test_while_a_mail_waits_for_a_server_no_others_pile_up_behind_it(ledger: Ledger) -> None:
    channel = by_email(ledger)
    await channel.turn()
    for server in ("primary", "secondary", "third"):
        happened(ledger, server=server)
        await channel.turn()
        the_pause_is_over(ledger)
    (first,) = mails(ledger)
    ledger.cancel(first)
    await channel.turn()
    assert len(mails(ledger)) == 2
    assert "third" in rendered(ledger, mails(ledger)[1]), "and the next one tells all"


@pytest.mark.parametrize("interrupted", ["created", "with its recipient", "sent"])
async def test_an_interrupted_email_is_taken_up_and_not_sent_twice(ledger: Ledger, interrupted: str) -> None:
    name = "alert-1"
    if interrupted == "sent":
        send_alert_mail(ledger, POLICY, name, subject="x", text="y")
    else:
        campaign = ledger.create_campaign(
            name, sender="a@example.com", subject="x", text="y", purpose="alert"
        )
        if interrupted == "with its recipient":
            ledger.add_recipients(campaign.id, [ops()])
    assert send_alert_mail(ledger, POLICY, name, subject="x", text="y") == name
    assert [delivery.email for delivery in ledger.deliveries(name)] == ["ops@example.com"]
    assert ledger.campaign(name).status is Status.RUNNING


def ops() -> NewRecipient:
    return NewRecipient(email="ops@example.com", dedupe_key="ops@example.com", domain="example.com")


async def test_an_operators_campaign_of_that_name_is_left_alone(ledger: Ledger) -> None:
    ledger.create_campaign("alert-1", sender="a@example.com", subject="x", text="y")
    name = send_alert_mail(ledger, POLICY, "alert-1", subject="x", text="y")
    assert name.startswith("alert-1-")
    assert ledger.campaign("alert-1").status is Status.DRAFT
    assert list(ledger.deliveries("alert-1")) == []


async def test_a_paused_alert_does_not_raise_another(ledger: Ledger) -> None:
    channel = by_email(ledger)
    await channel.turn()
    happened(ledger)
    await channel.turn()
    (name,) = mails(ledger)
    ledger.pause(name, "SPF fails everywhere")
    ledger.record_event("campaign", campaign=name, from_state="running", to_state="paused", reason="SPF")
    the_pause_is_over(ledger)
    await channel.turn()
    assert mails(ledger) == [name]
    crowd = Crowd(ledger)
    ledger.record_event(
        "campaign", campaign=crowd.name, from_state="running", to_state="paused", reason="SPF"
    )
    await channel.turn()
    assert len(mails(ledger)) == 2


async def test_the_channels_do_not_wait_for_one_another(ledger: Ledger, hook: WebhookServer) -> None:
    policy = AlertPolicy(webhook=hook.url, email="ops@example.com")
    webhook, email = alertings(policy, ledger)
    await asyncio.gather(webhook.turn(), email.turn())
    hook.status = 503
    happened(ledger)
    await webhook.turn()
    await email.turn()
    assert len(mails(ledger)) == 1
    records = {name: ledger.alert_record(name) for name in ("webhook", "email")}
    assert [record and record.failures for record in records.values()] == [1, 0]


async def test_a_failure_is_logged(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    teller = Teller(ledger, answers=iter(["no route to host", ""]))
    await teller.channel.turn()
    happened(ledger)
    with caplog.at_level(logging.WARNING):
        await teller.channel.turn()
    assert "an alert did not get through" in caplog.text
    the_pause_is_over(ledger)
    await teller.channel.turn()
    assert len(teller.told) == 1


def test_events_know_the_purpose_of_their_campaign(ledger: Ledger) -> None:
    send_alert_mail(ledger, POLICY, "alert-1", subject="x", text="y")
    ledger.record_event("campaign", campaign="alert-1", from_state="running", to_state="finished")
    ledger.record_event("campaign", campaign="gone", from_state="running", to_state="finished")
    happened(ledger)
    found: list[TellableEvent] = ledger.events_between(0)
    assert [event.purpose for event in found] == ["alert", None, None]
    assert [event.id for event in ledger.events_between(1, 2)] == [2]
