"""Which events the operator is told of, when, and in which words. Pure: the time is an argument.

The first event is told at once, and what happens within the pause after it comes in one message. A server
that goes to and fro is told a few times; from then on its changes wait for the next news, or an hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from campaigns.events import BY_OPERATOR, Event
from campaigns.ledger import AlertRecord, TellableEvent
from campaigns.states import Status

__all__ = [
    "LOOK_BACK",
    "MOST_LISTED",
    "Alert",
    "deserves_alert",
    "is_due",
    "next_alert",
    "pause_seconds",
    "sentence",
    "settled",
]

MOST_LISTED = 200
"""Events in one message; of more, the newest."""
LOOK_BACK = 500
"""Events before the pending ones that are looked at for repetitions."""
REPETITIONS = 4
"""So many changes of one thing within `REPETITION_SECONDS` are news; the next ones wait."""
REPETITION_SECONDS = 3600.0
STALE_SECONDS = 86400.0
"""What is older is counted, and not listed: the webhook was away for days, or was not configured."""
LATE_SECONDS = 10.0
"""An event whose number is missing may appear for so long: PostgreSQL commits in any order."""
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 3600.0

_TO_AND_FRO = frozenset({"breaker", "share", "limit", "standby", "probe"})
_TOLD_AS = {
    ("breaker", "open"): "given up",
    ("breaker", "closed"): "takes mail again",
    ("share", "100 %"): "has its whole share again",
    ("limit", "full"): "full",
    ("limit", "open"): "no longer full",
    ("probe", "failing"): "fails its probe",
    ("probe", "ok"): "passes its probe again",
    ("drill", "overdue"): "its drill is overdue",
    ("campaign", "paused"): "paused by itself",
}


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What one message tells: `events` and `omitted` more; with it, all up to `last_id` is told.

    Without events there is nothing to tell, and `last_id` is passed over.
    """

    events: tuple[TellableEvent, ...]
    omitted: int
    last_id: int

    def subject(self) -> str:
        """The newest change, in one line."""
        count = len(self.events) + self.omitted
        more = "" if count == 1 else f", the last of {count:,} changes"
        return f"[campaigns] {_headline(self.events[-1])}{more}"

    def text(self) -> str:
        """One line for each event, the oldest first; times in UTC."""
        lines = [f"{_time(event.at)}  {sentence(event)}" for event in self.events]
        if self.omitted:
            lines.insert(0, f"({self.omitted:,} more; `campaigns events` lists them)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What a webhook is posted: events as `campaigns events --json` prints them, each with its `id`."""
        events = [{"id": one.id, **Event.from_record(one).to_dict()} for one in self.events]
        return {"text": self.text(), "events": events, "omitted": self.omitted}


def deserves_alert(event: TellableEvent) -> bool:
    """Whether the operator is told of it: not of trials and steps on the way, nor of a pause by hand.

    What happens to an alert's own mail causes no further alert.
    """
    if event.purpose == "alert":
        return False
    match event.kind:
        case "breaker":
            return "closed" in {event.from_state, event.to_state}
        case "share":
            return event.to_state == "100 %"
        case "campaign":
            return event.to_state == Status.PAUSED and event.reason != BY_OPERATOR
        case "limit" | "standby" | "probe" | "drill" | "operator":
            return True
    return False


def settled(events: Sequence[TellableEvent], after_id: int, now: float) -> list[TellableEvent]:
    """Of the events above `after_id`, in their order, those below the first number that may yet appear."""
    found: list[TellableEvent] = []
    last_id = after_id
    for event in events:
        if event.id > last_id + 1 and event.at > now - LATE_SECONDS:
            break
        found.append(event)
        last_id = event.id
    return found


def next_alert(
    pending: Sequence[TellableEvent], told: Sequence[TellableEvent], *, now: float
) -> Alert | None:
    """The message for the `pending` events; None while they wait. `told`: those that came before."""
    if not pending:
        return None
    last_id = pending[-1].id
    deserving = [event for event in pending if deserves_alert(event)]
    fresh = [event for event in deserving if event.at > now - STALE_SECONDS]
    if not fresh:
        return Alert(events=(), omitted=0, last_id=last_id)
    if now - fresh[0].at < REPETITION_SECONDS and not _is_any_news(fresh, told):
        return None
    listed = tuple(fresh[-MOST_LISTED:])
    return Alert(events=listed, omitted=len(deserving) - len(listed), last_id=last_id)


def is_due(record: AlertRecord, every_seconds: float) -> bool:
    """Whether it is time to tell; so it is, too, if the clock was set back behind all that can be."""
    longest_seconds = 2 * max(every_seconds, LONGEST_RETRY_SECONDS)
    return not 0 < record.next_at - record.now <= longest_seconds


def pause_seconds(failures: int, jitter: float) -> float:
    """After so many tries in a row that failed: 5 s, doubled each time, at most an hour; `jitter` 0 to 1."""
    doubled = FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 30)
    return min(doubled, LONGEST_RETRY_SECONDS) * (0.8 + 0.4 * jitter)


def sentence(event: TellableEvent) -> str:
    """What happened, to whom, and why."""
    return _headline(event) + (f" ({event.reason})" if event.reason else "")


def _is_any_news(pending: Sequence[TellableEvent], told: Sequence[TellableEvent]) -> bool:
    """Whether one of them is no mere repetition of what was told lately."""
    since = pending[0].at - REPETITION_SECONDS
    times = Counter(_about(event) for event in told if event.at > since and deserves_alert(event))
    return any(event.kind not in _TO_AND_FRO or times[_about(event)] < REPETITIONS for event in pending)


def _about(event: TellableEvent) -> tuple[str, str | None]:
    return event.kind, event.server


def _headline(event: TellableEvent) -> str:
    said = _TOLD_AS.get((event.kind, event.to_state or ""), f"{event.kind} {event.to_state or ''}".strip())
    return f"{event.server or event.campaign or 'campaigns'}: {said}"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
