"""A campaign: created, given recipients, sent, followed, and steered while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from campaigns.errors import TransitionRefused
from campaigns.events import BY_OPERATOR
from campaigns.ledger import DeliveryRecord
from campaigns.message import message_id_pattern
from campaigns.progress import Progress, ServerProgress
from campaigns.recipients import RecipientList
from campaigns.settings import DEFAULT_STREAM
from campaigns.standstill import may_carry, why_nothing_moves
from campaigns.states import State, Status
from campaigns.units import Rate
from campaigns.waiting import Waiting
from campaigns.watch import View, watch

if TYPE_CHECKING:
    from campaigns.client import Client

_RECORDED = tuple(field.name for field in fields(DeliveryRecord))


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery(DeliveryRecord):
    """One recipient of a campaign, and what became of it. Times are epoch seconds by the database's clock.

    `message_id` is the same at each attempt, in angle brackets: by it a server's log names the mail.
    """

    message_id: str


@dataclass(frozen=True, kw_only=True)
class RetryReport:
    """How many are tried again; how many were left because a server may still answer for them.

    The first of those left may be tried in `ready_in_seconds`. `told` is False if the broker is not there.
    """

    count: int
    too_young: int = 0
    ready_in_seconds: float = 0.0
    told: bool = True


class Campaign:
    """One campaign by its name. Holds nothing: every call asks the ledger, so it may be used from threads."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<Campaign {self.name}>"

    @classmethod
    def create(  # noqa: PLR0913 - what a campaign is made of, by keyword
        cls,
        name: str,
        *,
        sender: str,
        subject: str,
        html: Path | str | None = None,
        text: Path | str | None = None,
        reply_to: str | None = None,
        headers: Mapping[str, str] | None = None,
        list_unsubscribe: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        stream: str = DEFAULT_STREAM,
        rate: Rate | str | None = None,
        client: Client | None = None,
    ) -> Campaign:
        """A new campaign, a draft until it is sent.

        `sender`: "News <news@example.com>". `subject`, `html`, `text`, `list_unsubscribe` and the values of
        `headers` are templates (Jinja2); a Path is a file, a str the text itself. `defaults` are values of
        merge fields that the list has no column for. `rate`: "200/s", "600/m", "1000/h".
        Raises CampaignExists, TemplateError, MessageError, UnknownStream.
        """
        return (client or default_client()).create_campaign(
            name,
            sender=sender,
            subject=subject,
            html=html,
            text=text,
            reply_to=reply_to,
            headers=headers,
            list_unsubscribe=list_unsubscribe,
            defaults=defaults,
            stream=stream,
            rate=rate,
        )

    @classmethod
    def get(cls, name: str, client: Client | None = None) -> Campaign:
        """The campaign of that name. Raises UnknownCampaign."""
        return (client or default_client()).campaign(name)

    @property
    def recipients(self) -> RecipientList:
        """Add people with `.add_csv(path)` and `.add(iterable)`."""
        return RecipientList(self._client, self.name)

    def send(self, at: datetime | None = None) -> bool:
        """Let the workers send it, now or at a time with a zone. Returns at once, when that is committed.

        True if the workers were told; False if the broker is not there: they find it when it is back.
        Raises TransitionRefused.
        """
        if at is not None and at.tzinfo is None:
            raise TransitionRefused("the time has no zone; give an aware datetime")
        try:
            at = at and at.astimezone(UTC)
        except OverflowError:
            raise TransitionRefused("the time is out of the range of time") from None
        before = self._open_status()
        after = self._client.ledger.send(self.name, None if at is None else at.timestamp()).status
        self._note(before, after)
        return self._client.nudge()

    def pause(self) -> None:
        """Nothing more is sent until `resume`, not even what is queued. Raises TransitionRefused."""
        before = self._open_status()
        self._note(before, self._client.ledger.pause(self.name).status)

    def resume(self) -> bool:
        """Go on. True if the workers were told, as for `send`. Raises TransitionRefused."""
        before = self._open_status()
        after = self._client.ledger.resume(self.name)
        self._note(before, after.status)
        return self._client.publish_again(after.id)

    def cancel(self) -> None:
        """Send nothing more of it, for good. Raises TransitionRefused."""
        before = self._status
        self._client.ledger.cancel(self.name)
        self._note(before, Status.CANCELLED)

    def retry(self, state: State | str = State.FAILED) -> RetryReport:
        """Try those who failed, or are uncertain, again. The uncertain may get a second mail.

        An uncertain one is left alone until its server can no longer answer; if that holds for all of them,
        TransitionRefused says so.
        """
        delivery = self._client.settings.delivery
        wait_seconds = delivery.dot_seconds + delivery.lease_seconds
        before = self._open_status()
        retried = self._client.ledger.retry(self.name, state, wait_seconds)
        ready_in_seconds = 0.0
        if retried.left:
            aged_seconds = self._client.oldest_uncertain_seconds(self.name) or 0.0
            ready_in_seconds = max(0.0, wait_seconds - aged_seconds)
        if retried.left and not retried.moved:
            raise TransitionRefused(
                f"{self.name}: a server may still answer for all {retried.left:,} that are uncertain;"
                f" try again from {clock_time(ready_in_seconds)}"
            )
        self._note(before, self._status)
        told = self._client.nudge()
        return RetryReport(
            count=retried.moved, too_young=retried.left, ready_in_seconds=ready_in_seconds, told=told
        )

    def status(self) -> Progress:
        """Where it stands, at one moment."""
        counts = self._client.ledger.counts(self.name)
        configured = {server.name: ServerProgress() for server in self._client.settings.servers}
        found = {
            name: ServerProgress(sent=one.sent, rerouted=one.rerouted) for name, one in counts.servers.items()
        }
        running = counts.status is Status.RUNNING
        return Progress(
            name=counts.name,
            status=counts.status,
            reason=counts.reason,
            total=counts.total,
            counts=counts.states,
            servers={**configured, **found},
            rate_per_second=self._client.rate_per_second(self.name) if running else 0.0,
            waiting=self._client.waiting(self.name) if running else Waiting(),
            most_per_second=self._client.ledger.campaign(self.name).rate_per_second if running else None,
        )

    def view(self) -> View:
        """`status` with the servers, and why nothing moves; then there is no rate and no time left."""
        progress, servers = self.status(), self._client.servers()
        if progress.status is not Status.RUNNING:
            return View(progress=progress, servers=servers, note=self._idle_note(progress.status))
        stream = self._client.ledger.campaign(self.name).stream
        names = {server.name for server in self._client.settings.route(stream)}
        route = [server for server in servers if server.name in names]
        if not any(may_carry(server) for server in route):
            progress = replace(progress, rate_per_second=0.0)
        return View(progress=progress, servers=servers, note=why_nothing_moves(route))

    def watch(self, file: TextIO | None = None) -> Progress:
        """Show progress, rate, time left and the servers until it is finished or cancelled.

        Live on a terminal, a line every few seconds elsewhere. Returns the last progress.
        """
        return watch(self.view, file=file)

    def deliveries(self, state: State | str | None = None) -> Iterator[Delivery]:
        """The recipients and what became of them, read in pages; all, or those in one state.

        Raises ValueError for a state that there is not.
        """
        wanted = None if state is None else State(state)
        record = self._client.ledger.campaign(self.name)
        pattern = message_id_pattern(record.token, record.sender)
        return (
            Delivery(**{name: getattr(one, name) for name in _RECORDED}, message_id=pattern % one.id)
            for one in self._client.ledger.deliveries(self.name, wanted)
        )

    def _open_status(self) -> Status:
        status = self._status
        if status is Status.CANCELLED:
            raise TransitionRefused(f"campaign {self.name} is cancelled; that is final")
        return status

    def _idle_note(self, status: Status) -> str:
        """What a campaign waits for that does not run."""
        if status is Status.DRAFT:
            return (
                "it is a draft that was not sent; if its import was interrupted, the same `campaigns send`"
                " command goes on where it was"
            )
        scheduled_at = self._client.ledger.campaign(self.name).scheduled_at
        if status is Status.SCHEDULED and scheduled_at is not None:
            return f"it starts at {zoned_time(scheduled_at)}"
        return ""

    @property
    def _status(self) -> Status:
        return self._client.ledger.campaign(self.name).status

    def _note(self, before: Status, after: Status) -> None:
        if before is not after:
            self._client.ledger.record_event(
                "campaign", campaign=self.name, from_state=before, to_state=after, reason=BY_OPERATOR
            )


def clock_time(seconds: float) -> str:
    """The operator's own time in so many seconds, rounded up to the next one: `14:05:10 (in 8 min)`."""
    then = datetime.now().astimezone() + timedelta(seconds=math.ceil(seconds))
    left = f"{math.ceil(seconds / 60)} min" if seconds > 60 else f"{math.ceil(seconds)} s"
    return f"{then + timedelta(seconds=1):%H:%M:%S} (in {left})"


def zoned_time(seconds: float) -> str:
    """The operator's own time with its zone: `2026-06-01 09:00:00 +0200`."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def default_client() -> Client:
    """The client that is used where none is given."""
    from campaigns.client import default_client as shared  # noqa: PLC0415 - the two know each other

    return shared()
