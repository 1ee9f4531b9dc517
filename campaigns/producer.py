"""The producer: takes due deliveries in bounded windows, gives each a server, publishes one task a recipient.

Any number of producers may run at once. `Ledger.enqueue` moves each delivery once, commits, and only then is
its message published; a producer that dies in between leaves a `queued` row that the sweep publishes again.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from celery import Celery

from campaigns import routing
from campaigns.errors import BrokerUnavailable
from campaigns.fleet import Fleet
from campaigns.ledger import Due, Ledger, QueuedDelivery
from campaigns.limits import Limits
from campaigns.queues import publish_deliveries
from campaigns.routing import Share
from campaigns.settings import Settings
from campaigns.window import Window

__all__ = ["Producer"]

log = logging.getLogger(__name__)

BATCH = 500
"""Deliveries in one transaction: its write lock on SQLite lasts some 50 ms at most."""
CAMPAIGN_BURST_SECONDS = 1.0
"""A campaign's rate is handed out in such portions at most; a producer looks several times a second."""
WINDOW_PER_CONNECTION = 5
PROBES = 2
"""Real mails that may wait for a half-open server."""
POSTPONE_SECONDS = 15.0
"""For mail whose every server is blocked for it: it must not stand in the way of the others."""

MOST_HELD_SECONDS = 60.0
"""A campaign that its rate holds back is asked about again after that at the latest."""

Group = tuple[str, str, str]
"""stream, sender, and the domain where blocks make a difference."""


class Producer:
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
        self._limits = Limits(settings.state_url)
        self._shares: dict[tuple[str, ...], Share] = defaultdict(Share)
        self._windows: dict[str, Window] = {}
        self._held_until: dict[int, float] = {}

    def __repr__(self) -> str:
        return f"<Producer: {', '.join(f'{name} {w.size}' for name, w in self._windows.items())}>"

    def run_once(self) -> int:
        """Fill the windows once; returns how many messages were published. Raises DatabaseUnavailable."""
        self._fleet.refresh()
        room = self._room()
        if not any(room.values()):
            return 0
        due = self._within_rates(self._due(room))
        if not due:
            return 0
        taken = self._ledger.enqueue(self._assign(due, room))
        self._publish(taken)
        return len(taken)

    def _due(self, room: Mapping[str, int]) -> list[Due]:
        """Only what may find room: the rest would take the places of others, turn after turn."""
        takers = {stream: self._takers(stream) for stream in self._ledger.running_streams()}
        streams = {stream for stream, names in takers.items() if any(room[name] for name in names)}
        if not streams:
            return []
        limit = sum(room[name] for name in frozenset().union(*(takers[stream] for stream in streams)))
        return self._ledger.due(min(limit, BATCH), streams, without=self._held_back())

    def _takers(self, stream: str) -> frozenset[str]:
        """Who may be given some of this stream's mail now."""
        if self._fleet.has_blocks:  # then it depends on the sender and the domain, too
            return frozenset(server.name for server in self._settings.route(stream))
        return frozenset({*self._fleet.usable(stream), *self._fleet.probing(stream)})

    def _held_back(self) -> frozenset[int]:
        """The campaigns whose rate allows nothing yet."""
        now = self._monotonic()
        self._held_until = {one: until for one, until in self._held_until.items() if until > now}
        return frozenset(self._held_until)

    def _room(self) -> dict[str, int]:
        """How many more messages each server's queue takes; a half-open one takes a probe or two."""
        queued = self._ledger.queued_counts()
        now = self._monotonic()
        return {
            server.name: self._room_of(server.name, queued.get(server.name, 0), now)
            for server in self._settings.servers
        }

    def _room_of(self, name: str, queued: int, now: float) -> int:
        state = self._fleet.state(name)
        if state == "open":
            return 0
        if state == "half-open":
            return max(0, PROBES - queued)
        readers = self._fleet.readers
        room = self._window(name).look(queued, readers.sent_per_second.get(name, 0.0), now)
        return min(room, BATCH)

    def _window(self, name: str) -> Window:
        processes = max(1, self._fleet.readers.processes.get(name, 1))
        floor = WINDOW_PER_CONNECTION * self._settings.server(name).connections * processes
        window = self._windows.setdefault(name, Window(floor=floor))
        window.floor = floor
        return window

    def _assign(self, due: Sequence[Due], room: dict[str, int]) -> list[tuple[int, str]]:
        before = dict(room)
        assignments: list[tuple[int, str]] = []
        for group, members in self._grouped(due).items():
            rest = self._probes(group, members, room, assignments)
            assignments += self._split(group, rest, room)
        for name, window in self._windows.items():
            window.took(before[name] - room[name], before[name])
        return assignments

    def _within_rates(self, due: Sequence[Due]) -> list[Due]:
        """Of a campaign with a rate, as many as that allows now; the rest stays due."""
        by_campaign: dict[int, list[Due]] = defaultdict(list)
        for delivery in due:
            by_campaign[delivery.campaign_id].append(delivery)
        return [
            delivery for members in by_campaign.values() for delivery in members[: self._allowed(members)]
        ]

    def _allowed(self, members: Sequence[Due]) -> int:
        rate = members[0].rate_per_second
        if rate is None:
            return len(members)
        campaign_id = members[0].campaign_id
        grant = self._limits.take(
            f"campaign:{campaign_id}", rate, len(members), burst_seconds=CAMPAIGN_BURST_SECONDS
        )
        if grant.granted < len(members):
            self._held_until[campaign_id] = self._monotonic() + min(grant.wait_seconds, MOST_HELD_SECONDS)
        return grant.granted

    def _grouped(self, due: Iterable[Due]) -> Mapping[Group, list[Due]]:
        by_domain = self._fleet.has_blocks
        groups: dict[Group, list[Due]] = defaultdict(list)
        for delivery in due:
            domain = delivery.domain if by_domain else ""
            groups[delivery.stream, delivery.sender, domain].append(delivery)
        return groups

    def _probes(
        self, group: Group, members: list[Due], room: dict[str, int], assignments: list[tuple[int, str]]
    ) -> list[Due]:
        """Half-open servers get their few real mails first; returns the rest."""
        stream, sender, domain = group
        rest = iter(members)
        for server in self._fleet.probing(stream):
            if server in self._fleet.blocked(stream, sender, domain):
                continue
            probes = list(islice(rest, room[server]))
            assignments += [(delivery.delivery_id, server) for delivery in probes]
            room[server] -= len(probes)
        return list(rest)

    def _split(self, group: Group, members: Sequence[Due], room: dict[str, int]) -> list[tuple[int, str]]:
        stream, sender, domain = group
        usable = self._fleet.usable(stream, sender, domain)
        if not usable or not members:
            self._postpone_blocked(group, members)
            return []
        result = routing.assign(
            members,
            weights=self._fleet.shares(stream, usable),
            room={name: room[name] for name in usable},
            share=self._shares[usable],
            spill=self._is_any_stuck(usable),
        )
        self._shares[usable] = result.share
        for _, server in result.assigned:
            room[server] -= 1
        return list(result.assigned)

    def _is_any_stuck(self, usable: Sequence[str]) -> bool:
        """The weights hold while every server drains its queue; what one does not drain goes elsewhere."""
        now = self._monotonic()
        return any(self._windows[name].is_stuck(now) for name in usable if name in self._windows)

    def _postpone_blocked(self, group: Group, members: Sequence[Due]) -> None:
        if members and self._fleet.blocked(*group):
            self._ledger.postpone([delivery.delivery_id for delivery in members], POSTPONE_SECONDS)

    def _publish(self, taken: Sequence[QueuedDelivery]) -> None:
        try:
            if taken:
                publish_deliveries(self._app, taken)
        except BrokerUnavailable:
            log.warning("the broker is away; what was queued is published later", extra={"count": len(taken)})
