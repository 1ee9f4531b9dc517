"""The channels that the operator is told through: how they stand, and a trial of each."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from campaigns.alert_mail import send_alert_mail
from campaigns.alerts import Alert
from campaigns.ledger import AlertRecord, Counts, Ledger, TellableEvent
from campaigns.policies import AlertPolicy
from campaigns.states import State
from campaigns.webhook import post_webhook, shown_webhook

__all__ = ["ChannelStatus", "Trial", "channel_statuses", "channels", "try_email", "try_webhook"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class ChannelStatus:
    """A channel that is configured. Without a record nothing was ever to be told there."""

    channel: str
    to: str
    record: AlertRecord | None

    @property
    def is_failing(self) -> bool:
        return self.record is not None and self.record.failures > 0

    @property
    def text(self) -> str:
        if self.record is None:
            return "no worker has looked for news yet"
        if not self.record.failures:
            return "well"
        tries = "the last try" if self.record.failures == 1 else f"the last {self.record.failures:,} tries"
        return f"{tries} did not get through: {self.record.error}"

    def to_dict(self) -> dict[str, Any]:
        """The object that `campaigns alerts --json` prints."""
        failures, error = (self.record.failures, self.record.error) if self.record else (0, None)
        return {"channel": self.channel, "to": self.to, "failures": failures, "error": error}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a message that was sent to try a channel."""

    channel: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return {"channel": self.channel, "ok": self.ok, "detail": self.detail}


def channels(policy: AlertPolicy) -> dict[str, str]:
    """Those that are configured, and to whom they speak, without secrets."""
    found = {}
    if policy.webhook is not None:
        found["webhook"] = shown_webhook(policy.webhook)
    if policy.email is not None:
        found["email"] = policy.email
    return found


def channel_statuses(policy: AlertPolicy, ledger: Ledger) -> list[ChannelStatus]:
    """How each channel that is configured stands."""
    return [
        ChannelStatus(channel=channel, to=to, record=ledger.alert_record(channel))
        for channel, to in channels(policy).items()
    ]


def try_webhook(policy: AlertPolicy, now: float) -> Trial:
    """Post a message that says it is a trial."""
    assert policy.webhook is not None
    error = post_webhook(policy.webhook, _trial(now).to_dict())
    shown = shown_webhook(policy.webhook)
    return Trial(channel="webhook", ok=not error, detail=f"{shown}: {error or 'it took the message'}")


def try_email(policy: AlertPolicy, ledger: Ledger, *, wait_seconds: float) -> Trial:
    """Send a mail that says it is a trial, as alerts are sent, and wait for what becomes of it."""
    alert = _trial(ledger.now())
    name = f"alert-test-{secrets.token_hex(4)}"
    send_alert_mail(ledger, policy, name, subject=alert.subject(), text=alert.text())
    deadline = time.monotonic() + wait_seconds
    while (counts := ledger.counts(name)).alive and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    detail = _fate(ledger, counts, wait_seconds)
    return Trial(channel="email", ok=counts.states[State.SENT] > 0, detail=f"{policy.email}: {detail}")


def _fate(ledger: Ledger, counts: Counts, wait_seconds: float) -> str:
    if counts.alive:
        return f"not accepted by any server within {wait_seconds:g} s; it waits, and goes out when one can"
    delivery = next(ledger.deliveries(counts.name))
    match delivery.state:
        case State.SENT:
            return f"accepted by {delivery.server}"
        case State.SUPPRESSED:
            return "it is on the list of suppressed addresses"
        case _:
            return f"{delivery.state}: {delivery.reply or 'no reply'}"


def _trial(now: float) -> Alert:
    event = TellableEvent(
        id=0,
        at=now,
        server=None,
        campaign=None,
        kind="alert",
        from_state=None,
        to_state="test",
        reason="nothing happened; somebody tries whether alerts arrive",
    )
    return Alert(events=(event,), omitted=0, last_id=0)
