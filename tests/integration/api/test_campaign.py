"""The Python API: create, send, follow, steer; on both databases, without a broker."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from pathlib import Path

import pytest
from sqlalchemy import text

import campaigns
from campaigns.campaign import Campaign
from campaigns.client import Client
from campaigns.errors import (
    CampaignExists,
    CampaignsError,
    DatabaseError,
    InvalidAddress,
    InvalidRecipients,
    MessageError,
    TemplateError,
    TransitionRefused,
    UnknownCampaign,
    UnknownStream,
)
from campaigns.health import HealthBoard
from campaigns.ledger import Claim, CommitPoint, Record
from campaigns.message import RecipientContent
from campaigns.recipients import BATCH
from campaigns.settings import Settings
from campaigns.states import State, Status


def send_to(campaign: Campaign, count: int) -> None:
    campaign.recipients.add({"email": f"u{n}@example.com", "first_name": "A"} for n in range(count))
    campaign.send()


def end_all(client: Client, to: State, server: str = "primary") -> Sequence[int]:
    """What workers do, without SMTP: every pending delivery ends so."""
    ledger = client.ledger
    due = [one.delivery_id for one in ledger.due(1000)]
    ledger.enqueue([(delivery, server) for delivery in due])
    ledger.apply([Claim(delivery_id=one, server=server, owner="test", lease_seconds=20) for one in due])
    ledger.apply([CommitPoint(delivery_id=one, fence=1) for one in due])
    ledger.apply(
        [
            Record(
                delivery_id=one,
                fence=1,
                server=server,
                owner="test",
                to=to,
                from_committing=True,
                outcome={State.SENT: "sent", State.FAILED: "rejected"}.get(to, "uncertain"),
                reply="250 2.0.0 accepted",
            )
            for one in due
        ]
    )
    return due


def test_a_campaign_is_a_draft_until_it_is_sent(client: Client, campaign: Campaign) -> None:
    assert campaign.status().status is Status.DRAFT
    assert campaign.send() is False  # no broker; it was committed all the same
    assert Campaign.get("spring", client).status().status is Status.RUNNING


def test_sending_returns_at_once_without_a_broker(campaign: Campaign) -> None:
    began = datetime.now(UTC)
    campaign.send()
    assert datetime.now(UTC) - began < timedelta(seconds=5)


def test_a_name_is_taken_once(client: Client, campaign: Campaign) -> None:
    with pytest.raises(CampaignExists, match="spring exists already"):
        client.create_campaign("spring", sender="n@example.com", subject="x", text="x")


@pytest.mark.parametrize("name", ["", " x", "a/b", "a\nb", "x" * 101])
def test_a_name_that_cannot_be_shown_or_typed_is_refused(client: Client, name: str) -> None:
    with pytest.raises(CampaignsError, match="cannot name a campaign"):
        client.create_campaign(name, sender="n@example.com", subject="x", text="x")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"subject": "Hi {{ name"}, TemplateError),
        ({"sender": "not an address"}, CampaignsError),
        ({"text": None}, MessageError),
        ({"headers": {"Bcc": "x@example.com"}}, MessageError),
        ({"stream": "Loud"}, UnknownStream),
        ({"stream": "nosuch"}, UnknownStream),
        ({"rate": "fast"}, CampaignsError),
        ({"html": Path("missing.html")}, InvalidRecipients),
    ],
)
def test_content_is_checked_before_anything_is_created(
    client: Client, changes: dict[str, object], error: type[Exception]
) -> None:
    content: dict[str, object] = {"sender": "n@example.com", "subject": "x", "text": "x"}
    with pytest.raises(error):
        client.create_campaign("wrong", **(content | changes))  # type: ignore[arg-type]
    with pytest.raises(UnknownCampaign):
        client.campaign("wrong")


def test_a_template_is_read_from_a_path_and_a_string_is_the_template(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "spring.html"
    file.write_text("<p>Grüße</p>", encoding="utf-8")
    client.create_campaign("one", sender="n@example.com", subject="x", html=file)
    client.create_campaign("two", sender="n@example.com", subject="x", html="<p>Grüße</p>", rate="600/m")
    assert client.ledger.campaign("one").html == client.ledger.campaign("two").html == "<p>Grüße</p>"
    assert client.ledger.campaign("two").rate_per_second == 10


def test_a_campaign_can_be_scheduled(campaign: Campaign) -> None:
    campaign.send(at=datetime.now(UTC) + timedelta(hours=1))
    assert campaign.status().status is Status.SCHEDULED
    with pytest.raises(TransitionRefused, match="no zone"):
        campaign.send(at=datetime(2030, 1, 1))


def test_pausing_twice_is_no_error_and_each_change_is_an_event(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 3)
    campaign.pause()
    campaign.pause()
    assert campaign.status().status is Status.PAUSED
    campaign.resume()
    campaign.cancel()
    progress = campaign.status()
    assert progress.status is Status.CANCELLED
    assert progress.counts[State.CANCELLED] == progress.total == 3
    changes = [(event.from_state, event.to_state) for event in client.events(campaign="spring")]
    assert changes == [
        ("draft", "running"),
        ("running", "paused"),
        ("paused", "running"),
        ("running", "cancelled"),
    ]


def test_what_is_over_cannot_be_paused_or_resumed(campaign: Campaign) -> None:
    campaign.cancel()
    for step in (campaign.pause, campaign.resume, campaign.send, campaign.retry):
        with pytest.raises(TransitionRefused, match="spring is cancelled"):
            step()


def test_status_has_every_state_server_and_a_sum(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 5)
    end_all(client, State.SENT)
    told = campaign.status().to_dict()
    assert list(told) == ["name", "status", "total", "counts", "servers", "rate_per_second", "eta_seconds"]
    assert list(told["counts"]) == [str(state) for state in State]
    assert sum(told["counts"].values()) == told["total"] == 5
    assert told["servers"] == {
        "primary": {"sent": 5, "rerouted": 0},
        "secondary": {"sent": 0, "rerouted": 0},
    }


def test_a_server_on_trial_is_told_with_the_fault_that_took_it_off(client: Client) -> None:
    client.ledger.record_event("breaker", server="primary", to_state="open", reason="dead")
    client.ledger.record_event("breaker", server="primary", to_state="half-open", reason="cool-down is over")
    now = [1000.0]
    board = client.__dict__["_board"] = HealthBoard(None, clock=lambda: now[0])
    for _ in range(5):
        board.fault("primary", "dead")
    now[0] += 3600
    primary, _ = client.servers()
    assert primary.state == "half-open"
    assert primary.reason_text == "being tried with single mails; last fault: dead"


def test_who_waits_for_later_is_counted_and_nobody_else(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 3)
    assert campaign.status().waiting.count == 0
    with client.ledger.database.write() as connection:
        later = "UPDATE delivery SET next_attempt_at = next_attempt_at + 300 WHERE id > (SELECT min(id)"
        connection.execute(text(f"{later} FROM delivery)"))
    waiting = campaign.status().waiting
    assert waiting.count == 2
    assert 280 < waiting.first_seconds <= waiting.last_seconds <= 300


def test_the_rate_is_that_of_the_last_seconds(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 5)
    end_all(client, State.SENT)
    campaign.recipients.add([{"email": "later@example.com", "first_name": "x"}])
    progress = campaign.status()
    assert 0.4 < progress.rate_per_second <= 5
    assert progress.eta_seconds == pytest.approx(1 / progress.rate_per_second)


def test_failed_deliveries_are_listed_and_can_be_tried_again(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 3)
    end_all(client, State.FAILED)
    failed = list(campaign.deliveries(state="failed"))
    assert [one.email for one in failed] == ["u0@example.com", "u1@example.com", "u2@example.com"]
    assert {(one.server, one.reply) for one in failed} == {("primary", "250 2.0.0 accepted")}
    client.ledger.finish_idle()
    assert campaign.status().status is Status.FINISHED
    assert campaign.retry("failed").count == 3
    assert campaign.status().counts[State.PENDING] == 3
    assert campaign.status().status is Status.RUNNING


def test_each_delivery_has_the_message_id_that_its_mail_has(client: Client) -> None:
    spring = client.create_campaign("spring", sender="News <news@b\u00fcch.example>", subject="Hi", text="x")
    spring.recipients.add(["ann@example.com", "bob@example.com"])
    compiled = client.compiled(client.ledger.campaign("spring"))
    for delivery in spring.deliveries():
        content = RecipientContent(delivery_id=delivery.id, email=delivery.email, fields={})
        mail = message_from_bytes(compiled.render(content, 0.0).body)
        assert delivery.message_id == mail["Message-ID"]


def test_uncertain_ones_are_left_alone_while_their_server_may_still_answer(
    client: Client, campaign: Campaign
) -> None:
    send_to(campaign, 2)
    end_all(client, State.UNCERTAIN)
    with pytest.raises(TransitionRefused, match=r"all 2 that .* try again from \d\d:\d\d:\d\d \(in 11 min"):
        campaign.retry("uncertain")
    assert campaign.status().counts[State.UNCERTAIN] == 2


def test_uncertain_ones_are_tried_again_when_no_reply_can_come(settings: Settings) -> None:
    hasty = settings.delivery.model_copy(update={"dot_seconds": 0.0, "lease_seconds": 0.0})
    with Client(settings.model_copy(update={"delivery": hasty})) as client:
        campaign = client.create_campaign("spring", sender="n@example.com", subject="x", text="x")
        send_to(campaign, 2)
        end_all(client, State.UNCERTAIN)
        assert campaign.retry("uncertain").count == 2


def test_an_unknown_state_or_campaign_is_refused(client: Client, campaign: Campaign) -> None:
    with pytest.raises(ValueError, match="lost"):
        campaign.deliveries(state="lost")
    with pytest.raises(TransitionRefused):
        campaign.retry("sent")
    with pytest.raises(UnknownCampaign, match="campaigns status"):
        client.campaign("autumn")


def test_watching_ends_when_the_campaign_is_finished(client: Client, campaign: Campaign) -> None:
    send_to(campaign, 2)
    threading.Timer(0.3, lambda: (end_all(client, State.SENT), client.ledger.finish_idle())).start()
    shown = io.StringIO()
    assert campaign.watch(file=shown).status is Status.FINISHED
    assert shown.getvalue().splitlines()[-1].startswith("spring finished  2/2  sent 2")
    assert "no worker is running" in shown.getvalue()


def test_servers_tell_health_and_share_without_a_broker(client: Client) -> None:
    primary, _ = client.servers()
    assert (primary.name, primary.state, primary.share, primary.weight) == ("primary", "unknown", None, 70)
    client.set_server_mode("secondary", "closed")
    assert client.servers()[1].share == 0.0, "that is known"
    contract = ["name", "state", "share", "weight", "since", "reason"]
    assert list(primary.to_dict())[: len(contract)] == contract
    assert {"worker", "limit", "mode"} <= set(primary.to_dict())
    assert client.servers_without_worker() == ("primary", "secondary")
    client.ledger.heartbeat("w1", ["primary"], host="here", pid=1, sent_per_second=0.0)
    assert client.servers_without_worker() == ("secondary",)


def test_suppressions_are_listed_and_taken_back(client: Client, tmp_path: Path) -> None:
    assert client.suppressions.add("Ann@Example.com", "asked") is True
    assert client.suppressions.add("ann@example.com") is False
    path = tmp_path / "list.csv"
    path.write_text("email,reason\nbob@example.com,left\nann@example.com,\nnobody,\nBOB@example.com,\n")
    report = client.suppressions.add_csv(path, "imported")
    assert (report.added, report.known, report.rejected) == (1, 2, 1)
    assert report.examples[0][0] == 4
    assert [(one.email, one.reason) for one in client.suppressions] == [
        ("Ann@example.com", "asked"),
        ("bob@example.com", "left"),
    ]
    assert client.suppressions.remove("ANN@example.com") is True
    assert client.suppressions.remove("ann@example.com") is False
    with pytest.raises(InvalidAddress, match="nobody: "):
        client.suppressions.add("nobody")


def test_a_list_that_is_rewritten_while_it_is_suppressed_is_an_error(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.csv"
    whole = "email\n" + "".join(f"user{number}@example.com\n" for number in range(5_000))
    path.write_text(whole)
    suppress = client.ledger.suppress

    def rewrite(rows: Iterable[tuple[str, str, str | None]]) -> int:
        path.write_text("email\neve@example.com\n")
        return suppress(rows)

    with monkeypatch.context() as patch:
        patch.setattr(client.ledger, "suppress", rewrite)
        with pytest.raises(InvalidRecipients, match="changed while it was read"):
            client.suppressions.add_csv(path)
    path.write_text(whole)
    report = client.suppressions.add_csv(path)
    assert report.added + report.known == 5_000
    assert len(list(client.suppressions)) == 5_000


def test_a_client_is_used_from_threads_and_from_a_running_loop(client: Client, settings: Settings) -> None:
    def one(number: int) -> int:
        campaign = client.create_campaign(f"c{number}", sender="n@example.com", subject="x", text="x")
        return campaign.recipients.add([f"u{n}@example.com" for n in range(20)]).added

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [20] * 8

    async def inside() -> int:
        return await asyncio.to_thread(one, 99)

    assert asyncio.run(inside()) == 20


def test_two_clients_in_one_process_do_not_see_each_other(
    client: Client, campaign: Campaign, tmp_path: Path
) -> None:
    other = client.settings.model_copy(update={"database": f"sqlite:///{tmp_path}/other.db"})
    with Client(other) as second:
        second.upgrade_database()
        assert second.campaigns() == []
    assert [one.name for one in client.campaigns()] == ["spring"]


def test_a_sqlite_file_that_is_not_there_is_made_by_the_first_campaign(
    settings: Settings, tmp_path: Path
) -> None:
    fresh = settings.model_copy(update={"database": f"sqlite:///{tmp_path}/deep/fresh.db"})
    with Client(fresh) as client:
        with pytest.raises(DatabaseError, match="there is no database"):
            client.campaigns()
        assert not (tmp_path / "deep").exists()
        client.create_campaign("spring", sender="n@example.com", subject="x", text="x")
        assert [one.name for one in client.campaigns()] == ["spring"]


def test_the_first_client_that_is_connected_is_the_default_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("campaigns.client._shared", None)
    with campaigns.connect(settings) as first, campaigns.connect(settings) as second:
        campaign = campaigns.Campaign.create("spring", sender="n@example.com", subject="x", text="x")
        assert repr(campaign) == "<Campaign spring>"
        assert campaigns.Campaign.get("spring", client=second).status().status is Status.DRAFT
        assert [one.name for one in first.campaigns()] == ["spring"]


def test_the_package_has_at_most_ten_public_names() -> None:
    assert len(campaigns.__all__) <= 10
    assert all(getattr(campaigns, name) is not None for name in campaigns.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = campaigns.nothing


def test_a_slow_list_goes_on_though_all_before_it_are_served(client: Client) -> None:
    campaign = client.create_campaign("plain", sender="n@example.com", subject="x", text="x")
    campaign.send()

    def people() -> Iterator[str]:
        yield from (f"user{number}@example.com" for number in range(BATCH))
        client.ledger.suppress([(email, email, None) for email in served])
        assert client.ledger.finish_idle() == ["plain"]
        yield "last@example.com"

    served = [f"user{number}@example.com" for number in range(BATCH)]
    assert campaign.recipients.add(people()).added == BATCH + 1
    status = campaign.status()
    assert (status.status, status.total, status.counts["pending"]) == ("running", BATCH + 1, 1)
