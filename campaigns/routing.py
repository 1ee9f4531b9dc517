"""Which server takes which mail: by route, weight, health, readers and blocks. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Assignment", "Blocked", "Condition", "Routed", "Share", "assign", "probing", "shares", "usable"]


class Routed(Protocol):
    """A server of a route, as far as routing looks at it (settings.Server)."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> int: ...


class Condition(Protocol):
    """A server's health, as far as routing looks at it (health.ServerHealth)."""

    @property
    def state(self) -> str: ...
    @property
    def is_full(self) -> bool: ...
    @property
    def share(self) -> float:
        """The part of its usual share that it is given: less than 1 while it gets its load back."""


class Blocked(Protocol):
    """A server taken off a sender, a recipient domain, or (neither) everything; until None: for good."""

    @property
    def server(self) -> str: ...
    @property
    def sender(self) -> str | None: ...
    @property
    def domain(self) -> str | None: ...
    @property
    def until(self) -> float | None: ...


class Waiting(Protocol):
    """A due delivery (ledger.Due): its id, and the server that it was deferred by."""

    @property
    def delivery_id(self) -> int: ...
    @property
    def server(self) -> str | None: ...


def usable(  # noqa: PLR0913 - everything that has a say, each by its name
    route: Sequence[Routed],
    *,
    health: Mapping[str, Condition],
    readers: Collection[str],
    blocks: Iterable[Blocked] = (),
    sender: str = "",
    domain: str = "",
    now: float,
    without: str | None = None,
    weights: Mapping[str, float] | None = None,
    off: Collection[str] = (),
) -> tuple[str, ...]:
    """The names that may be given mail now, in the order of the route; cold ones only if no hot one is left.

    `weights`: where they are not the servers' own. `off`: servers that are given nothing now, for a reason
    that is not their health. Empty: the mail waits. Servers that no worker reads count only while none of the
    route is read.
    """
    able = [server for server in allowed(route, blocks, sender, domain, now) if server.name != without]
    able = [server for server in read(able, readers) if is_well(health.get(server.name))]
    able = [server for server in able if server.name not in off]
    weights = weights or {server.name: server.weight for server in route}
    hot = [server for server in able if weights[server.name] > 0]
    return tuple(server.name for server in hot or able)


def shares(weights: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """The parts, adding up to 1, that servers get which are given only a part of their usual share.

    `given`: by server, from 0 to 1; left out: all of it. What they are not given goes to those that are
    given all, by weight; where there is none, everybody's part grows alike.
    """
    even = evened(weights)
    total = sum(even.values())
    usual = {name: weight / total for name, weight in even.items()}
    parts = {name: part * given.get(name, 1.0) for name, part in usual.items()}
    whole = {name: part for name, part in parts.items() if given.get(name, 1.0) >= 1.0 and part > 0}
    takers = whole or {name: part for name, part in parts.items() if part > 0}
    if not takers:
        return usual
    left, base = 1.0 - sum(parts.values()), sum(takers.values())
    return {name: part + (left * part / base if name in takers else 0.0) for name, part in parts.items()}


def probing(
    route: Sequence[Routed], *, health: Mapping[str, Condition], readers: Collection[str]
) -> tuple[str, ...]:
    """The names of half-open servers: each should be given a few real mails to be tried with, no more."""
    half_open = [server for server in route if state_of(health.get(server.name)) == "half-open"]
    return tuple(server.name for server in half_open if server.name in readers)


def allowed(
    route: Sequence[Routed], blocks: Iterable[Blocked], sender: str, domain: str, now: float
) -> list[Routed]:
    off = {block.server for block in blocks if applies(block, sender, domain, now)}
    return [server for server in route if server.name not in off]


def applies(block: Blocked, sender: str, domain: str, now: float) -> bool:
    """A field of the block that is None holds for every value."""
    lasts = block.until is None or block.until > now
    return lasts and block.sender in (None, sender) and block.domain in (None, domain)


def read(servers: Sequence[Routed], readers: Collection[str]) -> Sequence[Routed]:
    with_readers = [server for server in servers if server.name in readers]
    return with_readers or servers


def is_well(condition: Condition | None) -> bool:
    return condition is None or (condition.state == "closed" and not condition.is_full)


def state_of(condition: Condition | None) -> str:
    return "closed" if condition is None else condition.state


@dataclass(frozen=True)
class Share:
    """What each server is still owed from earlier batches, in units of weight; adds up to nothing.

    Carried from batch to batch, it makes the totals exact however small the batches are.
    """

    owed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Who goes where, in the order given; `held` found no room and waits; `share` is for the next batch."""

    assigned: tuple[tuple[int, str], ...]
    held: tuple[int, ...]
    share: Share


def assign(
    due: Iterable[Waiting],
    *,
    weights: Mapping[str, float],
    room: Mapping[str, int],
    share: Share = Share(),
    spill: bool = False,
) -> Assignment:
    """Split a batch over the servers of `weights` (those that are usable now) in exact proportion.

    A delivery that a server deferred goes back to it while that is usable, outside the proportion: it was
    counted the first time. `room` is how many more each server's window takes; when the one whose turn it is
    has none, the rest is held, so that the weights hold; with `spill` the others take it instead.
    """
    split = Split(weights=weights, room=room, owed=share.owed, spill=spill)
    assigned: list[tuple[int, str]] = []
    held: list[int] = []
    for delivery in due:
        server = split.place(delivery.server)
        if server is None:
            held.append(delivery.delivery_id)
        else:
            assigned.append((delivery.delivery_id, server))
    return Assignment(assigned=tuple(assigned), held=tuple(held), share=Share(split.owed))


class Split:
    """Smooth weighted round robin: at each turn all earn their weight, and the one owed most pays the sum."""

    def __init__(
        self, *, weights: Mapping[str, float], room: Mapping[str, int], owed: Mapping[str, float], spill: bool
    ) -> None:
        self.weights = evened(weights)
        self.room = {name: room.get(name, 0) for name in weights}
        self.owed = {name: owed.get(name, 0.0) for name in weights}
        self.spill = spill

    def place(self, last: str | None) -> str | None:
        server = last if last in self.weights else self.turn()
        if server is None or self.room[server] <= 0:
            return None
        self.room[server] -= 1
        return server

    def turn(self) -> str | None:
        candidates = [name for name in self.weights if not self.spill or self.room[name] > 0]
        if not candidates:
            return None
        earned = {name: self.owed[name] + self.weights[name] for name in candidates}
        server = max(earned, key=lambda name: earned[name])
        if self.room[server] <= 0:
            return None  # and it stays its turn: the rest is held too
        earned[server] -= sum(self.weights[name] for name in candidates)
        self.owed.update(earned)
        return server


def evened(weights: Mapping[str, float]) -> dict[str, float]:
    """Cold servers, which are usable only among themselves, share evenly."""
    return dict(weights) if any(weight > 0 for weight in weights.values()) else dict.fromkeys(weights, 1.0)
