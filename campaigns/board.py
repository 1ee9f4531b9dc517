"""The breakers of all servers as one value, and what holds for all of them together. Pure.

While no server takes mail, none is condemned further: cool-downs do not grow and are cut to the first one's
length, and one trial at a time goes out over all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from campaigns.breaker import Breaker, BreakerState, Fault
from campaigns.policies import BreakerPolicy

__all__ = ["Board", "Change", "Heard", "Rules", "changes"]

Kind = Literal["breaker", "share", "limit"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A server went from `before` to `after`: an event, to be recorded by whoever is told.

    `breaker`: closed, open, and half-open once a mail tries it. `share`: what it is given of its usual share.
    `limit`: open, full.
    """

    server: str
    before: str
    after: str
    reason: str
    kind: Kind = "breaker"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """So many mails went through, the last of them `seconds_ago`, and then, if there is one, a fault."""

    successes: int = 0
    seconds_ago: float = 0.0
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The policy, and the servers that may be given mail as far as the operator has a say."""

    policy: BreakerPolicy = field(default_factory=BreakerPolicy)
    servers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Board:
    """Breakers by server; one of which nothing is known is closed and whole."""

    breakers: Mapping[str, Breaker] = field(default_factory=dict)

    def of(self, server: str) -> Breaker:
        return self.breakers.get(server, Breaker())

    def at(self, now: float, rules: Rules) -> Board:
        """What the passing of time has made of them. All that follows is asked of a board `at` `now`."""
        eased = self._is_nobody_left(rules)
        return Board(
            {
                name: (one.eased(rules.policy) if eased and name in rules.servers else one).at(
                    now, rules.policy
                )
                for name, one in self.breakers.items()
            }
        )

    def after(self, server: str, heard: Iterable[Heard], now: float, rules: Rules, random: float) -> Board:
        """What was seen of a server, in its order."""
        board = self
        for one in heard:
            breaker = board.of(server)
            if one.successes:
                breaker = breaker.after_successes(
                    one.successes, now, rules.policy, seconds_ago=one.seconds_ago
                )
            if one.fault is not None:
                is_last = board._is_last(server, rules)
                breaker = breaker.after_fault(one.fault, now, rules.policy, random=random, is_last=is_last)
            board = board.having(server, breaker)
        return board

    def after_trial(self, server: str, token: str, now: float, rules: Rules) -> Board:
        """A trial mail went through."""
        return self.having(server, self.of(server).after_successes(1, now, rules.policy, token=token))

    def after_check(self, server: str, error: str, now: float, rules: Rules, random: float) -> Board:
        """An idle server was tried without a mail; `error` is empty where it answered."""
        is_last = self._is_last(server, rules)
        checked = self.of(server).after_check(error, now, rules.policy, random=random, is_last=is_last)
        return self.having(server, checked)

    def probed(self, server: str, now: float, rules: Rules, *, token: str, seconds: float) -> Board | None:
        """With `token` on trial; None while another mail is, anywhere if no server takes mail.

        Trials follow each other fast then, on all servers: none is told unless it closes one.
        """
        is_alone = self._is_nobody_left(rules)
        if is_alone and any(one.is_trying(now, seconds) for one in self.breakers.values()):
            return None
        probed = self.of(server).probed(now, token=token, seconds=seconds, is_told=not is_alone)
        return None if probed is None else self.having(server, probed)

    def having(self, server: str, breaker: Breaker) -> Board:
        return replace(self, breakers={**self.breakers, server: breaker})

    def _is_last(self, server: str, rules: Rules) -> bool:
        """Whether no other server takes mail."""
        others = rules.servers - {server}
        return server in rules.servers and not any(self._takes_mail(other) for other in others)

    def _is_nobody_left(self, rules: Rules) -> bool:
        return bool(rules.servers) and not any(self._takes_mail(server) for server in rules.servers)

    def _takes_mail(self, server: str) -> bool:
        return self.of(server).state is BreakerState.CLOSED

    def to_json(self) -> str:
        return json.dumps({name: breaker.to_dict() for name, breaker in self.breakers.items()})

    @classmethod
    def from_json(cls, text: str | bytes | None) -> Board:
        """What nobody wrote, or nobody can read, is an empty board: all are closed and whole."""
        try:
            read = json.loads(text or "{}")
        except ValueError:
            return cls()
        if not isinstance(read, dict):
            return cls()
        return cls({name: Breaker.from_dict(values) for name, values in read.items()})


def changes(before: Board, after: Board, policy: BreakerPolicy) -> Iterator[Change]:
    """What is to be told of the way from one board to the other."""
    for server in after.breakers:
        old, new = before.of(server), after.of(server)
        if old.told_state is not new.told_state:
            yield Change(server=server, before=old.told_state, after=new.told_state, reason=new.reason)
        elif old.percent(policy) != new.percent(policy):
            yield Change(
                server=server,
                before=f"{old.percent(policy)} %",
                after=f"{new.percent(policy)} %",
                reason=new.reason,
                kind="share",
            )
        if bool(old.full_until) != bool(new.full_until):
            states = ("open", "full") if new.full_until else ("full", "open")
            reason = new.full_reason or "its time is over"
            yield Change(server=server, before=states[0], after=states[1], reason=reason, kind="limit")
