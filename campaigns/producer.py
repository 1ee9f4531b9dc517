"""The producer: takes due deliveries in bounded windows, gives each a server, publishes one task a recipient.

Any number of producers may run at once. `Ledger.enqueue` moves each delivery once, commits, and only then is
its message published; a producer that dies in between leaves a `queued` row that the sweep publishes again.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from celery import Celery

from campaigns import routing, sharing
from campaigns.allowance import Allowance
from campaigns.broker_outage import BrokerOutage
from campaigns.errors import BrokerError
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


@dataclass
class Held:
    """What waits in the ledger: for how many seconds, by domain and delivery; and what nobody may take."""

    by_domain: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    blocked: list[int] = field(default_factory=list)


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
        self._outage = BrokerOutage(settings.broker_url, monotonic=monotonic)

    def __repr__(self) -> str:
        return f"<Producer: {self._rooms!r}>"

    def close(self) -> None:
        """Let go of Redis, as far as it is its own."""
        self._limits.close()
        self._allowance.close()

    def run_once(self) -> int:
        """Fill the windows once; returns how many messages were published. Raises DatabaseUnavailable.

        A broker that takes none is waited out.
        """
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
        due = self._due(room, [one for one in streams if is_urgent(one) is urgent])
        if not due:
            return 0
        allowed = self._allowed(due)
        taken = self._ledger.enqueue(self._assign_within(allowed, due, room, urgent))
        self._give_back(allowed, due, taken)
        return self._publish(taken)

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

    def _allowed(self, due: Sequence[Due]) -> dict[int, int]:
        """By campaign, how many may go now; of one with a rate what that allows, and it is taken."""
        counts = Counter((delivery.campaign_id, delivery.rate_per_second) for delivery in due)
        return {
            campaign_id: count if rate is None else self._take(campaign_id, rate, count)
            for (campaign_id, rate), count in counts.items()
        }

    def _take(self, campaign_id: int, rate: float, wanted: int) -> int:
        """Less than 0: give back."""
        grant = self._limits.take(
            f"campaign:{campaign_id}",
            rate,
            wanted,
            burst_seconds=CAMPAIGN_BURST_SECONDS,
            processes=self._fleet.producers(),
        )
        if grant.granted < wanted:
            self._held_until[campaign_id] = self._monotonic() + min(grant.wait_seconds, MOST_HELD_SECONDS)
        return grant.granted

    def _give_back(
        self, allowed: Mapping[int, int], due: Sequence[Due], taken: Sequence[QueuedDelivery]
    ) -> None:
        """What a rate allowed and no mail used: there was no room, or others had taken the mail."""
        used = Counter(delivery.campaign_id for delivery in taken)
        rates = {delivery.campaign_id: delivery.rate_per_second for delivery in due}
        for campaign_id, rate in rates.items():
            unused = allowed[campaign_id] - used[campaign_id]
            if rate is not None and unused > 0:
                self._take(campaign_id, rate, -unused)
                self._held_until.pop(campaign_id, None)

    def _assign_within(
        self, allowed: Mapping[int, int], due: Sequence[Due], room: dict[str, int], urgent: bool
    ) -> list[tuple[int, str]]:
        """As many of each campaign as it is allowed: for each that has to wait, its next is looked at."""
        self._look_at_domains(due)
        assignments: list[tuple[int, str]] = []
        held = Held()
        left = dict(allowed)
        offered, rest = _first_of(due, left)
        while offered:
            assigned = self._assign(offered, room, urgent, held)
            assignments += assigned
            campaigns = {delivery.delivery_id: delivery.campaign_id for delivery in offered}
            for delivery_id, _ in assigned:
                left[campaigns[delivery_id]] -= 1
            offered, rest = _first_of(rest, left)
        self._postpone(held)
        return assignments

    def _postpone(self, held: Held) -> None:
        for domain, seconds in held.by_domain.items():
            self._ledger.postpone_each(seconds, f"held by the limits of {domain}")
        if held.blocked:
            self._ledger.postpone(held.blocked, POSTPONE_SECONDS)

    def _assign(
        self, due: Sequence[Due], room: dict[str, int], urgent: bool, held: Held
    ) -> list[tuple[int, str]]:
        assignments: list[tuple[int, str]] = []
        for (group, full), members in self._grouped(due, held).items():
            open_room = {name: 0 if name in full else places for name, places in room.items()}
            rest = self._probes(group, members, open_room, assignments)
            assignments += self._split(group, rest, open_room, full, held)
            room.update({name: places for name, places in open_room.items() if name not in full})
        for _, server in assignments:
            self._rooms.take(server, urgent)
        return assignments

    def _grouped(self, due: Sequence[Due], held: Held) -> Mapping[tuple[Group, frozenset[str]], list[Due]]:
        """What may be split together, and the servers whose limits hold mail to its domain now.

        Mail that is held by all of them is to wait in the ledger, each until its turn: it goes to `held`.
        """
        waits = self._domain_waits(due)
        by_domain = self._fleet.has_blocks
        groups: dict[tuple[Group, frozenset[str]], list[Due]] = defaultdict(list)
        for delivery in due:
            wait = waits.get(delivery.delivery_id, {})
            full = frozenset(name for name, seconds in wait.items() if seconds > LEAST_WAIT_SECONDS)
            if wait and len(full) == len(wait):
                held.by_domain[delivery.domain][delivery.delivery_id] = min(wait.values())
                continue
            domain = delivery.domain if by_domain else ""
            groups[(delivery.stream, delivery.sender, domain), full].append(delivery)
        return groups

    def _look_at_domains(self, due: Sequence[Due]) -> None:
        if self._allowance.has_domain_limits:
            self._allowance.refresh({delivery.domain for delivery in due})

    def _domain_waits(self, due: Sequence[Due]) -> Mapping[int, Waits]:
        if not self._allowance.has_domain_limits:
            return {}
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
        self,
        group: Group,
        members: Sequence[Due],
        room: dict[str, int],
        full: frozenset[str],
        held: Held,
    ) -> list[tuple[int, str]]:
        stream, sender, domain = group
        usable = tuple(name for name in self._fleet.usable(stream, sender, domain) if name not in full)
        if not usable or not members:
            if self._fleet.blocked(*group):
                held.blocked += [delivery.delivery_id for delivery in members]
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

    def _publish(self, taken: Sequence[QueuedDelivery], *, ahead: bool = False) -> int:
        """How many were; the sweep publishes the rest when the broker takes them."""
        if not taken:
            return 0
        try:
            publish_deliveries(self._app, taken, ahead=ahead)
        except BrokerError as error:
            self._outage.refused(error)
            return 0
        self._outage.served()
        return len(taken)


def _first_of(due: Sequence[Due], allowed: Mapping[int, int]) -> tuple[list[Due], list[Due]]:
    """As many of each campaign as it is allowed, and the rest of those that are allowed anything."""
    left = dict(allowed)
    first: list[Due] = []
    rest: list[Due] = []
    for delivery in due:
        (first if left[delivery.campaign_id] > 0 else rest).append(delivery)
        left[delivery.campaign_id] -= 1
    return first, [delivery for delivery in rest if allowed[delivery.campaign_id] > 0]
