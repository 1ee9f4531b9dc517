"""The circuit breaker of one server: a value and its transitions. Pure; time and chance are arguments."""

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

__all__ = ["Breaker", "BreakerState"]

FAULTS_TO_OPEN = 3
FIRST_COOL_DOWN_SECONDS = 2.0
LONGEST_COOL_DOWN_SECONDS = 60.0
CALM_SECONDS = 60.0
"""A breaker that opens again within this time of closing goes on doubling its cool-down."""
JITTER = 0.2
MOST_AHEAD_SECONDS = LONGEST_COOL_DOWN_SECONDS * (1 + JITTER)
"""No cool-down ends further in the future; one that seems to was begun before the clock was set back."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    """Takes mail."""
    OPEN = "open"
    """Takes none until its cool-down is over."""
    HALF_OPEN = "half-open"
    """Takes one mail at a time, whose outcome closes it or opens it again."""


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """Times are epoch seconds. `openings` in a row decide the cool-down.

    `probe` names the one mail that is under way while half-open.
    """

    state: BreakerState = BreakerState.CLOSED
    since: float = 0.0
    reason: str = ""
    faults: int = 0
    openings: int = 0
    open_until: float = 0.0
    probe: str = ""
    probe_until: float = 0.0
    full_from: float = 0.0
    full_until: float = 0.0

    def is_full(self, now: float) -> bool:
        """Not before it became so either: a clock that was set back does not prolong it."""
        return self.full_from <= now < self.full_until

    def filled(self, now: float, *, until: float) -> "Breaker":
        """Full until then; an earlier time never shortens a later one."""
        until = max(self.full_until, until) if self.is_full(now) else until
        return replace(self, full_from=now, full_until=until)

    def at(self, now: float) -> "Breaker":
        """What it has become by the passing of time: an open one whose cool-down is over is half-open."""
        if self.state is not BreakerState.OPEN or 0 < self.open_until - now <= MOST_AHEAD_SECONDS:
            return self
        since = min(self.open_until, now)
        return replace(self, state=BreakerState.HALF_OPEN, since=since, reason="cool-down is over")

    def after_fault(
        self, now: float, *, reason: str, random: float, after_success: bool = False
    ) -> "Breaker":
        """One more fault of the server's. While open it changes nothing: it is of a mail that began before.

        `after_success`: the reporter saw the server work since the last fault, so that they are not in a row.
        """
        present = self.at(now)
        if present.state is BreakerState.OPEN:
            return self
        faults = 1 if after_success else present.faults + 1
        if present.state is BreakerState.CLOSED and faults < FAULTS_TO_OPEN:
            return replace(present, faults=faults)
        return present.opened(now, reason=reason, faults=faults, random=random)

    def opened(self, now: float, *, reason: str, faults: int, random: float) -> "Breaker":
        was_calm = self.state is BreakerState.CLOSED and not 0 <= now - self.since < CALM_SECONDS
        openings = 1 if was_calm else self.openings + 1
        return replace(
            self,
            state=BreakerState.OPEN,
            since=now,
            reason=reason,
            faults=faults,
            openings=openings,
            open_until=now + cool_down_seconds(openings, random),
            probe="",
            probe_until=0.0,
        )

    def after_success(self, now: float) -> "Breaker":
        """The server did its work. While open it changes nothing: the cool-down is kept."""
        present = self.at(now)
        if present.state is BreakerState.OPEN:
            return self
        if present.state is BreakerState.CLOSED:
            return replace(present, faults=0)
        return replace(
            present,
            state=BreakerState.CLOSED,
            since=now,
            reason="a mail went through",
            faults=0,
            probe="",
            probe_until=0.0,
        )

    def probed(self, now: float, *, token: str, seconds: float) -> "Breaker | None":
        """Half-open, `token` being the one mail that may pass until it expires; None if there is another.

        `seconds` is the same for all who ask: a probe that seems to last longer is of before a clock step.
        """
        present = self.at(now)
        under_way = 0 < present.probe_until - now <= seconds
        if present.state is not BreakerState.HALF_OPEN or under_way:
            return None
        return replace(present, probe=token, probe_until=now + seconds)

    def released(self, token: str) -> "Breaker":
        """The probe told nothing of the server: the next may go at once."""
        return replace(self, probe="", probe_until=0.0) if token and token == self.probe else self

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes | None) -> "Breaker":
        """What nobody wrote, or nobody can read, is closed: health is learned anew."""
        try:
            fields = json.loads(text or "{}")
            return cls(**{**fields, "state": BreakerState(fields.get("state", "closed"))})
        except (ValueError, TypeError, AttributeError):
            return cls()


def cool_down_seconds(openings: int, random: float) -> float:
    """2, 4, 8 ... 60 seconds, each up to a fifth shorter or longer, so that nothing returns in step."""
    doubled = FIRST_COOL_DOWN_SECONDS * 2.0 ** min(openings - 1, 30)
    return min(doubled, LONGEST_COOL_DOWN_SECONDS) * (1 + JITTER * (2 * random - 1))
