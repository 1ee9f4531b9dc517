"""The sweep: whatever a crash, a lost message or a dead server left behind is picked up again.

Every worker sweeps, in small steps. Each step is a compare-and-set in the ledger, so any number of them may
run at once.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from celery import Celery

from campaigns.broker_outage import BrokerOutage
from campaigns.broker_queue import held_count, waiting_count, waiting_deliveries
from campaigns.errors import BrokerError
from campaigns.fleet import READER_SECONDS, Fleet
from campaigns.ledger import Ledger, QueuedDelivery
from campaigns.moved_mail import MovedMail
from campaigns.publishing import ready_count
from campaigns.queues import publish_deliveries
from campaigns.settings import Settings
from campaigns.states import Status

__all__ = ["Sweeper"]

log = logging.getLogger(__name__)

CHUNK = 500
QUEUED_SECONDS = 30.0
"""A queued row older than this is looked for in the broker."""
SUSPICIOUS_SECONDS = 3.0
"""The same, when the broker holds fewer messages than the ledger has queued."""
WAITS_SECONDS = 600.0
"""So often, and whenever the clock was set back, waits are looked for that end later than any could."""
CLOCK_STEP_SECONDS = 5.0
MOST_CHUNKS_OF_WAITS = 20
"""In one turn; the rest in the next ones."""
DAY_SECONDS = 86_400.0
"""The longest period of a limit, and what a server's "come back in" is read as at most."""
LONGER = 1.2
"""Waits are up to a fifth longer than was asked for."""


class Sweeper:
    """One turn is `run_once`. Belongs to one thread."""

    def __init__(
        self,
        ledger: Ledger,
        app: Celery,
        settings: Settings,
        fleet: Fleet,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._app = app
        self._settings = settings
        self._fleet = fleet
        self._monotonic = monotonic
        self._judge_leases_at = 0.0
        self._look_at_waits_at = float("-inf")
        self._clock_ahead_seconds = float("-inf")
        self._moved = MovedMail("waiting mail was moved to another server", "server", monotonic=monotonic)
        self._outage = BrokerOutage(settings.broker_url, monotonic=monotonic)

    def __repr__(self) -> str:
        return f"<Sweeper of {self._fleet!r}>"

    def hold_judgement(self, seconds: float) -> None:
        """After an outage of the database: those who hold leases get as long to renew them."""
        self._judge_leases_at = self._monotonic() + seconds

    def run_once(self) -> None:
        """Every step once. Raises DatabaseUnavailable; a broker that is away is waited out."""
        for name in self._ledger.start_scheduled():
            self._record(name, Status.SCHEDULED, Status.RUNNING, "its time has come")
        self._end_leases()
        for name in self._ledger.finish_idle():
            if self._ledger.campaign(name).purpose == "campaign":  # the end of a drill or an alert is no news
                self._record(name, Status.RUNNING, Status.FINISHED, "nobody waits any more")
        self._ledger.end_blocks()
        self._ledger.forget_workers(20 * READER_SECONDS)
        self._fleet.refresh()
        self._shorten_waits()
        for server in (*self._fleet.unavailable(), *self._unknown()):
            self.reroute(server)
        self._moved.sum_up(ongoing=self._fleet.failing())
        try:
            is_asked = self._republish_lost()
        except BrokerError as error:
            self._outage.refused(error)
        else:
            if is_asked:
                self._outage.served()

    def _record(self, campaign: str, before: Status, after: Status, reason: str) -> None:
        self._ledger.record_event(
            "campaign", campaign=campaign, from_state=before, to_state=after, reason=reason
        )

    def _unknown(self) -> set[str]:
        """Servers that were taken out of the configuration while mail waited for them.

        Not those that a worker with another configuration still reads, as in a rolling restart.
        """
        known = {server.name for server in self._settings.servers} | set(self._fleet.readers.processes)
        return set(self._ledger.queued_counts()) - known

    def reroute(self, server: str) -> int:
        """Move what waits for `server` to the others, in chunks; returns how many moved. No SMTP is spoken.

        Streams differ in their routes; what no other server may take stays where it is. Limited servers are
        given what their limits allow soon; the rest is due again, and waits in the ledger for whoever may.
        """
        moved = sum(self._reroute_stream(server, stream) for stream in self._ledger.running_streams())
        is_failing = server in self._fleet.failing()
        self._moved.add(server, moved, level=logging.WARNING if is_failing else logging.INFO)
        return moved

    def _reroute_stream(self, server: str, stream: str) -> int:
        moved, given = 0, Counter[str]()
        while weights := self._weights(stream, server):
            rooms = self._limit_rooms(weights, given)
            able = {name: weight for name, weight in weights.items() if rooms.get(name, CHUNK) > 0}
            if not able:
                moved += self._withdraw(server, stream)
                break
            size = min(CHUNK, *(rooms[name] for name in able if name in rooms), CHUNK)
            chunk = self._ledger.reroute_queued(server, able, size, stream=stream)
            if not chunk:
                break
            moved += len(chunk)
            given.update(one.server for one in chunk)
            self._publish(chunk)
        return moved

    def _limit_rooms(self, names: Iterable[str], given: Mapping[str, int]) -> dict[str, int]:
        """What the limited ones of these may still be given, in this turn."""
        rooms = {name: self._fleet.limit_room(name) for name in names}
        return {name: room - given.get(name, 0) for name, room in rooms.items() if room is not None}

    def _withdraw(self, server: str, stream: str) -> int:
        taken_back = 0
        while count := self._ledger.withdraw_queued(server, CHUNK, stream=stream):
            taken_back += count
        return taken_back

    def _weights(self, stream: str, without: str) -> dict[str, float]:
        usable = self._fleet.usable(stream, without=without)
        return self._fleet.shares(stream, usable) if usable else {}

    def _end_leases(self) -> None:
        if self._monotonic() < self._judge_leases_at:
            return
        delivery = self._settings.delivery
        swept = self._ledger.sweep_leases(
            CHUNK,
            max_crashes=delivery.max_crashes,
            lease_seconds=delivery.lease_seconds,
            resends=delivery.on_uncertain == "resend",
        )
        if swept.pending or swept.uncertain or swept.failed:
            log.warning(
                "expired leases were ended",
                extra={"pending": swept.pending, "uncertain": swept.uncertain, "failed": swept.failed},
            )

    def _shorten_waits(self) -> None:
        """Mail does not wait for as long as the database's clock was set back."""
        ahead_seconds = self._fleet.now() - self._monotonic()
        is_set_back = ahead_seconds < self._clock_ahead_seconds - CLOCK_STEP_SECONDS
        self._clock_ahead_seconds = ahead_seconds
        if is_set_back:
            self._look_at_waits_at = float("-inf")
        if self._monotonic() < self._look_at_waits_at:
            return
        longest_seconds = LONGER * max(DAY_SECONDS, *self._settings.delivery.retry_after_seconds)
        shortened = 0
        for _ in range(MOST_CHUNKS_OF_WAITS):
            count = self._ledger.shorten_waits(longest_seconds, CHUNK)
            shortened += count
            if count < CHUNK:
                self._look_at_waits_at = self._monotonic() + WAITS_SECONDS
                break
        if shortened:
            log.warning("mail waited for the time before the clock was set back", extra={"count": shortened})

    def _republish_lost(self) -> bool:
        """Publish again what the ledger has queued and the broker does not hold; whether that was asked.

        A queue that refuses keeps no other server's mail back; the last refusal is raised in the end.
        """
        queued = self._ledger.queued_counts()
        held = held_count(self._app) if queued else None
        is_asked, refusal = held is not None, None
        for server, count in queued.items():
            try:
                is_asked |= self._republish_stale(server, count, held)
            except BrokerError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return is_asked

    def _republish_stale(self, server: str, queued: int, held: int | None) -> bool:
        """Whether there was anything to look for."""
        patience = SUSPICIOUS_SECONDS if self._is_short(server, queued, held) else QUEUED_SECONDS
        stale = self._ledger.stale_queued(server, patience, CHUNK)
        if stale:
            self._republish(server, queued, stale)
        return bool(stale)

    def _is_short(self, server: str, queued: int, held: int | None) -> bool:
        """Whether the broker surely holds too few messages: a flush, or a restart without its file."""
        waiting = waiting_count(self._app, server)
        return held is not None and waiting is not None and queued > waiting + held

    def _republish(self, server: str, queued: int, stale: Sequence[QueuedDelivery]) -> None:
        """What the broker does not take keeps its age, and is tried again in the next turn.

        If the database is lost before their wait begins anew, or two sweep at once, some may be published
        twice: no more than a chunk, and each is claimed once.
        """
        waiting = waiting_deliveries(self._app, server)
        if waiting is None:
            stale = lost = self._oldest_missing(server, queued, stale)
        else:
            lost = [delivery for delivery in stale if delivery.delivery_id not in waiting]
        if lost:
            publish_deliveries(self._app, lost)
            told = {"server": server, "count": len(lost)}
            log.warning("queued mail without a message was published again", extra=told)
        self._ledger.touch_queued([delivery.delivery_id for delivery in stale])

    def _oldest_missing(
        self, server: str, queued: int, stale: Sequence[QueuedDelivery]
    ) -> Sequence[QueuedDelivery]:
        """Of a queue that can only be counted: as many as are missing, so that it never grows without end.

        They may be others than those that are lost. But what is there is read and goes, what is published
        again is the youngest, and what is lost stays: it becomes the oldest, and the queue is short of it.
        """
        missing = queued - ready_count(self._app, server)
        return stale[: max(missing, 0)]

    def _publish(self, deliveries: Sequence[QueuedDelivery]) -> None:
        try:
            publish_deliveries(self._app, deliveries, ahead=True)
        except BrokerError as error:  # they are queued: they are looked for, and published then
            self._outage.refused(error)
        else:
            self._outage.served()
