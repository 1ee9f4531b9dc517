"""The producer: takes due deliveries in bounded windows, gives each a server, publishes one task a recipient.

Any number of producers may run at once. `Ledger.enqueue` moves each delivery once, commits, and only then is
its message published; a producer that dies in between leaves a `queued` row that the sweep publishes again.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from celery import Celery

from campaigns import routing, sharing
from campaigns.allowance import Allowance
from campaigns.errors import BrokerUnavailable
from campaigns.fleet import Fleet
from campaigns.ledger import Due, Ledger, QueuedDelivery
from campaigns.limits import Limits
from campaigns.moved_mail import MovedMail
from campaigns.publishing import is_urgent
from campaigns.queues import publish_deliveries
from campaigns.rooms import Rooms
from campaigns.routing import Share
from campaigns.settings import Settings

__all__ = ["Producer"]

log = logging.getLogger(__name__)

BATCH = 500
"""Deliveries in one transaction: its write lock on SQLite lasts some 50 ms at most."""
CAMPAIGN_BURST_SECONDS = 1.0
"""A campaign's rate is handed out in such portions at most; a producer looks several times a second."""
POSTPONE_SECONDS = 15.0
"""For mail whose every server is blocked for it: it must not stand in the way of the others."""
LEAST_WAIT_SECONDS = 1.0
"""Mail that a domain's limit holds for longer waits in the ledger, not in a queue."""
MOST_HELD_SECONDS = 60.0
"""A campaign that its rate holds back is asked about again after that at the latest."""

Group = tuple[str, str, str]
"""stream, sender, and the domain where blocks or limits make a difference."""

Waits = Mapping[str, float]
"""By server: how long its limits hold one more mail to a domain, in seconds."""


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
        self._allowance = Allowance(settings, ledger, processes=fleet.processes)
        self._rooms = Rooms(settings, fleet, self._allowance, most=BATCH, monotonic=monotonic)
        self._shares: dict[tuple[str, ...], Share] = defaultdict(Share)
        self._held_until: dict[int, float] = {}
        self._moved = MovedMail("waiting mail was moved to idle servers", "stream", monotonic=monotonic)

    def __repr__(self) -> str:
        return f"<Producer: {self._rooms!r}>"

    def close(self) -> None:
        """Let go of Redis, as far as it is its own."""
        self._limits.close()
        self._allowance.close()

    def run_once(self) -> int:
        """Fill the windows once; returns how many messages were published. Raises DatabaseUnavailable."""
        self._fleet.refresh()
        self._allowance.refresh()
        self._rooms.look(self._ledger.queued_by_stream())
        streams = self._ledger.running_streams()
        count = sum(self._fill(urgent, streams) for urgent in (True, False))
        self._rooms.close_turn()
        self._moved.sum_up()
        return count + (0 if count else self._even_out(streams))

    def _fill(self, urgent: bool, streams: Sequence[str]) -> int:
        room = self._rooms.of(urgent)
        due = self._within_rates(self._due(room, [one for one in streams if is_urgent(one) is urgent]))
        if not due:
            return 0
        taken = self._ledger.enqueue(self._assign(due, room, urgent))
        self._publish(taken)
        return len(taken)

    def _due(self, room: Mapping[str, int], running: Sequence[str]) -> list[Due]:
        """Only what may find room: the rest would take the places of others, turn after turn."""
        takers = {stream: self._takers(stream) for stream in running}
        streams = {stream for stream, names in takers.items() if any(room[name] > 0 for name in names)}
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

    def _assign(self, due: Sequence[Due], room: dict[str, int], urgent: bool) -> list[tuple[int, str]]:
        assignments: list[tuple[int, str]] = []
        for (group, full), members in self._grouped(due).items():
            open_room = {name: 0 if name in full else places for name, places in room.items()}
            rest = self._probes(group, members, open_room, assignments)
            assignments += self._split(group, rest, open_room, full)
            room.update({name: places for name, places in open_room.items() if name not in full})
        for _, server in assignments:
            self._rooms.take(server, urgent)
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

    def _grouped(self, due: Sequence[Due]) -> Mapping[tuple[Group, frozenset[str]], list[Due]]:
        """What may be split together, and the servers whose limits hold mail to its domain now.

        Mail that is held by all of them waits in the ledger, each until its turn.
        """
        waits = self._domain_waits(due)
        by_domain = self._fleet.has_blocks
        groups: dict[tuple[Group, frozenset[str]], list[Due]] = defaultdict(list)
        held: dict[str, dict[int, float]] = defaultdict(dict)
        for delivery in due:
            wait = waits.get(delivery.delivery_id, {})
            full = frozenset(name for name, seconds in wait.items() if seconds > LEAST_WAIT_SECONDS)
            if wait and len(full) == len(wait):
                held[delivery.domain][delivery.delivery_id] = min(wait.values())
                continue
            domain = delivery.domain if by_domain else ""
            groups[(delivery.stream, delivery.sender, domain), full].append(delivery)
        for domain, seconds in held.items():
            self._ledger.postpone_each(seconds, f"held by the limits of {domain}")
        return groups

    def _domain_waits(self, due: Sequence[Due]) -> Mapping[int, Waits]:
        if not self._allowance.has_domain_limits:
            return {}
        self._allowance.refresh({delivery.domain for delivery in due})
        return {
            delivery.delivery_id: self._allowance.domain_waits(
                self._fleet.usable(delivery.stream, delivery.sender, delivery.domain),
                delivery.domain,
                delivery.stream,
            )
            for delivery in due
        }

    def _probes(
        self, group: Group, members: list[Due], room: dict[str, int], assignments: list[tuple[int, str]]
    ) -> list[Due]:
        """Half-open servers get their few real mails first; returns the rest."""
        stream, sender, domain = group
        rest = iter(members)
        for server in self._fleet.probing(stream):
            if server in self._fleet.blocked(stream, sender, domain):
                continue
            probes = list(islice(rest, max(0, room[server])))
            assignments += [(delivery.delivery_id, server) for delivery in probes]
            room[server] -= len(probes)
        return list(rest)

    def _split(
        self, group: Group, members: Sequence[Due], room: dict[str, int], full: frozenset[str]
    ) -> list[tuple[int, str]]:
        stream, sender, domain = group
        usable = tuple(name for name in self._fleet.usable(stream, sender, domain) if name not in full)
        if not usable or not members:
            self._postpone_blocked(group, members)
            return []
        result = routing.assign(
            members,
            weights=self._fleet.shares(stream, usable),
            room={name: room[name] for name in usable},
            share=self._shares[usable],
            spill=self._spills(usable),
        )
        self._shares[usable] = result.share
        for _, server in result.assigned:
            room[server] -= 1
        return list(result.assigned)

    def _spills(self, usable: Sequence[str]) -> bool:
        """The weights hold while every server keeps up; by capacity, what one has no room for goes on."""
        if self._settings.sharing == "weights":
            return False
        return sharing.spills({name: self._rooms.load(name) for name in usable})

    def _even_out(self, streams: Sequence[str]) -> int:
        """Nothing new is to be given out: what waits for a slow server goes to those that have run dry.

        Not while one is taken off a sender or a domain: what is moved is not looked at for whom it is.
        """
        is_blind = self._fleet.has_blocks or not self._fleet.is_shared
        if self._settings.sharing == "weights" or is_blind:
            return 0
        return sum(self._even_out_stream(stream) for stream in streams if not is_urgent(stream))

    def _even_out_stream(self, stream: str) -> int:
        usable = self._fleet.usable(stream)
        count = 0
        for move in sharing.moves({name: self._rooms.load(name) for name in usable}):
            taken = self._ledger.reroute_queued(
                move.source, {move.target: 1.0}, min(move.count, BATCH), stream=stream, latest=True
            )
            self._publish(taken, ahead=True)
            count += len(taken)
        self._moved.add(stream, count)
        return count

    def _postpone_blocked(self, group: Group, members: Sequence[Due]) -> None:
        if members and self._fleet.blocked(*group):
            self._ledger.postpone([delivery.delivery_id for delivery in members], POSTPONE_SECONDS)

    def _publish(self, taken: Sequence[QueuedDelivery], *, ahead: bool = False) -> None:
        try:
            if taken:
                publish_deliveries(self._app, taken, ahead=ahead)
        except BrokerUnavailable:
            log.warning("the broker is away; what was queued is published later", extra={"count": len(taken)})
