"""Telling the operator, beside the mail: every worker looks for news, and one of them tells.

It can hold up nobody: a webhook is posted in a thread of its own, and the e-mail is a campaign of one.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

from campaigns.alert_mail import send_alert_mail
from campaigns.alerts import LOOK_BACK, Alert, is_due, next_alert, pause_seconds, settled
from campaigns.errors import CampaignsError, DatabaseUnavailable
from campaigns.ledger import AlertRecord, Ledger, TellableEvent
from campaigns.policies import AlertPolicy
from campaigns.webhook import NO_ANSWER, WEBHOOK_SECONDS, post_webhook
from workers.own_thread import in_own_thread

__all__ = ["Alerting", "alertings"]

log = logging.getLogger(__name__)

TURN_SECONDS = 30.0
"""Who has taken the turn and has not said what came of it by then has vanished; the next one tells again."""
MAIL_WAITS_SECONDS = 3600.0
"""While an alert's mail waits for so long to be delivered, what happens comes in the next one."""


def alertings(
    policy: AlertPolicy, ledger: Ledger, *, webhook_seconds: float = WEBHOOK_SECONDS
) -> list["Alerting"]:
    """One for each channel that is configured. They do not wait for one another."""
    found = []
    if policy.webhook is not None:
        tell = partial(_tell_webhook, policy.webhook, webhook_seconds)
        found.append(Alerting("webhook", ledger, tell, every_seconds=policy.every_seconds))
    if policy.email is not None:
        mail = _AlertMail(policy, ledger)
        found.append(
            Alerting("email", ledger, mail.tell, every_seconds=policy.every_seconds, is_busy=mail.is_busy)
        )
    return found


class Alerting:
    """One channel. `tell` returns why the operator could not be told, or an empty text."""

    def __init__(
        self,
        channel: str,
        ledger: Ledger,
        tell: Callable[[Alert], Awaitable[str]],
        *,
        every_seconds: float,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.channel = channel
        self._ledger = ledger
        self._tell = tell
        self._every_seconds = every_seconds
        self._is_busy = is_busy
        self._last_told_id = -1
        self._pending: list[TellableEvent] = []
        self._before: list[TellableEvent] = []

    def __repr__(self) -> str:
        return f"<Alerting by {self.channel}>"

    async def turn(self) -> None:
        """Tell what there is to tell, if it is time and no other process does. Raises DatabaseUnavailable."""
        taken = await asyncio.to_thread(self._take)
        if taken is None:
            return
        record, alert, turn = taken
        error = await self._tell(alert)
        if error:
            await asyncio.to_thread(self._failed, record, turn, error)
        else:
            await asyncio.to_thread(self._told, alert, turn)

    def _take(self) -> tuple[AlertRecord, Alert, float] | None:
        record = self._ledger.begin_alerts(self.channel)
        if not is_due(record, self._every_seconds):
            return None
        self._read_on(record)
        alert = next_alert(self._pending, self._before, now=record.now)
        if alert is None or (alert.events and self._is_busy()):
            return None
        if not alert.events:
            self._ledger.pass_over_events(record, alert.last_id)
            return None
        turn = self._ledger.take_alert(record, TURN_SECONDS)
        return None if turn is None else (record, alert, turn)

    def _read_on(self, record: AlertRecord) -> None:
        """What is pending may be so for an hour, and is not read again each time."""
        if record.last_event_id != self._last_told_id:
            self._last_told_id, self._pending = record.last_event_id, []
            self._before = self._ledger.events_between(record.last_event_id - LOOK_BACK, record.last_event_id)
        last_id = self._pending[-1].id if self._pending else record.last_event_id
        self._pending += settled(self._ledger.events_between(last_id), last_id, record.now)

    def _told(self, alert: Alert, turn: float) -> None:
        self._ledger.alert_told(self.channel, turn, to_id=alert.last_id, pause_seconds=self._every_seconds)

    def _failed(self, record: AlertRecord, turn: float, error: str) -> None:
        failures = record.failures + 1
        pause = pause_seconds(failures, random.random())  # noqa: S311 - jitter
        log.warning(
            "an alert did not get through; it is tried again",
            extra={"channel": self.channel, "failures": failures, "reason": error},
        )
        self._ledger.alert_failed(self.channel, turn, error=error, pause_seconds=pause)


async def _tell_webhook(url: str, timeout_seconds: float, alert: Alert) -> str:
    """Not in the threads that the ledger is asked in: a webhook that hangs would take one from it.

    The thread's own deadline is of each step; this one is of all, for a server that answers letter by letter.
    """
    post = partial(post_webhook, url, alert.to_dict(), timeout_seconds=timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds + 1):
            return await in_own_thread(post, name="webhook")
    except TimeoutError:
        return NO_ANSWER


class _AlertMail:
    """The e-mail to the operator, one at a time."""

    def __init__(self, policy: AlertPolicy, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger

    def is_busy(self) -> bool:
        return self._ledger.is_alert_mail_under_way(MAIL_WAITS_SECONDS)

    async def tell(self, alert: Alert) -> str:
        return await asyncio.to_thread(self._send, alert)

    def _send(self, alert: Alert) -> str:
        name = f"alert-{alert.last_id}"
        try:
            send_alert_mail(self._ledger, self._policy, name, subject=alert.subject(), text=alert.text())
        except DatabaseUnavailable:
            raise
        except CampaignsError as error:
            return str(error)
        return ""
