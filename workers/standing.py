"""How the servers stand, asked from coroutines: what may block goes to a thread, what is known does not."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from campaigns.breaker import BreakerState, Fault
from campaigns.classifier import Classification, Outcome
from campaigns.decision import Decision, Facts
from campaigns.errors import DatabaseUnavailable
from campaigns.fleet import Fleet
from campaigns.health import Change, Probe
from campaigns.ledger import Claimed, DeadServer
from campaigns.states import Status
from workers.letters import Letter

__all__ = ["Standing"]

log = logging.getLogger(__name__)

T = TypeVar("T")

SAYS_NOTHING = frozenset({Outcome.STOPPED, Outcome.UNCERTAIN, Outcome.UNREACHABLE})
"""Outcomes that tell neither for nor against the server."""
OUR_OWN_RULES = frozenset({"fault-utf8", "fault-size", "fault-render", "fault-internal"})
"""Nor do these: the server was never asked."""
FULL_MAILS = 3
"""So many mails in a row that hear "full" at RCPT or the dot are not each an odd recipient's."""


class Standing:
    """A Fleet for the attempts of one event loop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="standing")
        self._met: set[int] = set()
        self._full_for: dict[str, set[int]] = {}
        self._when_opened: Callable[[str], None] = lambda _: None

    def __repr__(self) -> str:
        return f"<Standing of {self._fleet!r}>"

    def when_opened(self, call: Callable[[str], None]) -> None:
        """`call` is told of each server whose breaker a report of this process opens."""
        self._when_opened = call

    @property
    def has_blocks(self) -> bool:
        """Whether a server is taken off any sender or domain."""
        return self._fleet.has_blocks

    async def admits(self, server: str, letter: Letter, domain: str = "") -> Probe | None:
        """Leave to hand the server one mail; None: not now. Give a probe back with `report` or `release`."""
        if self.has_blocks and server in self._fleet.blocked(letter.stream, letter.sender, domain):
            return None
        admitted = self._fleet.admits(server)
        if admitted is not None:
            return Probe(server=server) if admitted else None
        return await self._in_thread(partial(self._fleet.board.may_probe, server))

    async def drill_of(self, server: str, letter: Letter, domain: str = "") -> DeadServer | None:
        """The drill that has such mail find the server dead now. Who meets one first writes that down.

        A live one holds for no mail of others that has nowhere else to go: it would wait for the end.
        """
        drill = self._fleet.drill_of(server, letter.purpose)
        if drill is None:
            return None
        others = self._fleet.usable(letter.stream, letter.sender, domain, without=server)
        if not others and letter.purpose != "drill":
            return None
        if drill.drill_id not in self._met:
            self._met.add(drill.drill_id)
            await self._in_thread(partial(self._fleet.ledger.meet_drill, drill.drill_id))
        return drill

    async def report(
        self,
        probe: Probe,
        classification: Classification,
        reason: str,
        *,
        age_seconds: float = 0.0,
        waited_seconds: float = 0.0,
    ) -> None:
        """What the attempt says of the server. A breaker that opens is told to the sweep by the board.

        `age_seconds`: how long ago it was begun; `waited_seconds`: the longest that one reply took.
        """
        counts = classification.counts_against_server or (
            classification.counts_if_none_is_sent and not self.is_sent_through(probe.server)
        )
        if not counts and says_nothing(classification):
            await self.release(probe)
            return
        is_slow = waited_seconds > self.slow_seconds
        if counts or is_slow:
            told = reason if counts else f"a reply took {waited_seconds:.0f} s"
            await self.report_fault(
                probe.server,
                Fault(reason=told, token=probe.token, age_seconds=age_seconds, waited_seconds=waited_seconds),
            )
        elif probe.token:
            await self._tell(probe.server, None, probe.token)
        else:
            self._fleet.board.count_success(probe.server)

    async def report_fault(self, server: str, fault: Fault) -> None:
        """The server failed a mail, or keeps one waiting for too long."""
        await self._tell(server, fault, fault.token)

    async def _tell(self, server: str, fault: Fault | None, token: str) -> None:
        change = await self._in_thread(partial(self._report, server, fault, token))
        if change is not None and change.after == BreakerState.OPEN:
            self._when_opened(server)

    def is_sent_through(self, server: str) -> bool:
        """Whether any process sent mail through it within the last seconds."""
        return self._fleet.readers.sent_per_second.get(server, 0.0) > 0

    @property
    def slow_seconds(self) -> float:
        """A reply that takes longer counts as a fault, while it is awaited already."""
        return self._fleet.settings.breaker.slow_seconds

    def is_open(self, server: str) -> bool:
        """Whether the server's breaker is open, as this process sees it."""
        return self._fleet.state(server) == BreakerState.OPEN

    async def release(self, probe: Probe) -> None:
        if probe.token:
            await self._in_thread(partial(self._fleet.board.release, probe))

    def another(self, stream: str, sender: str, domain: str, server: str) -> str | None:
        """The best other server that may take such mail now; None while each process has its own opinion."""
        if not self._fleet.is_shared:
            return None
        usable = self._fleet.usable(stream, sender, domain, without=server)
        return usable[0] if usable else None

    def is_needed(self, server: str) -> bool:
        """Whether mail may go out through it now."""
        return self._fleet.is_needed(server)

    def rest_seconds(self, stream: str) -> float:
        return self._fleet.rest_seconds(stream)

    def processes(self, server: str) -> int:
        """How many worker processes read the server's queue."""
        return max(1, self._fleet.readers.processes.get(server, 1))

    async def facts(
        self, letter: Letter, claimed: Claimed, server: str, classification: Classification
    ) -> Facts:
        """All that `decide` looks at; what was before this attempt is unknown while the database is away."""
        fleet = self._fleet
        refusers, refused_domains = await self._policy_refusals(claimed, classification)
        deferred_since = await self._deferred_since(claimed, classification)
        answered_since = await self._answered_since(claimed, server, classification)
        refused_since = await self._refused_since(claimed, classification)
        return Facts(
            server=server,
            route=tuple(one.name for one in fleet.settings.route(letter.stream)),
            usable_servers=fleet.usable(letter.stream, letter.sender, claimed.domain, without=server),
            deferrals=claimed.deferrals,
            attempts=claimed.fence,
            first_attempt_at=claimed.first_attempt_at,
            deferred_since=deferred_since,
            answered_since=answered_since,
            refused_since=refused_since,
            is_full_for_others=self._is_full_for_others(claimed, server, classification),
            tried_by_policy=refusers,
            blocked=fleet.blocked(letter.stream, letter.sender, claimed.domain),
            policy_domains=refused_domains,
            sender=letter.sender,
            domain=claimed.domain,
        )

    async def _policy_refusals(
        self, claimed: Claimed, classification: Classification
    ) -> tuple[frozenset[str], Mapping[str, Set[str]]]:
        if classification.outcome is not Outcome.POLICY:
            return frozenset(), {}
        ledger = self._fleet.ledger
        try:
            refusers = await self._in_thread(partial(ledger.policy_refusers, claimed.delivery_id))
            domains = await self._in_thread(partial(ledger.policy_refusals, claimed.campaign_id))
        except DatabaseUnavailable:
            return frozenset(), {}
        return frozenset(refusers), domains

    async def _deferred_since(self, claimed: Claimed, classification: Classification) -> float | None:
        is_deferred_again = classification.outcome is Outcome.DEFERRED and claimed.deferrals > 0
        if not is_deferred_again or not self._may_be_given_up(claimed):
            return None
        return await self._known(partial(self._fleet.ledger.deferred_since, claimed.delivery_id))

    def _is_full_for_others(self, claimed: Claimed, server: str, classification: Classification) -> bool:
        """Whether the server says so to one mail after the other: those it told since it last took one."""
        if classification.outcome is Outcome.SENT:
            self._full_for.pop(server, None)
        is_of_mail = classification.is_answer or classification.of_our_account
        if classification.outcome is not Outcome.FULL or not is_of_mail:
            return True
        told = self._full_for.setdefault(server, set())
        if len(told) < FULL_MAILS:
            told.add(claimed.delivery_id)
        return len(told) >= FULL_MAILS

    async def _answered_since(
        self, claimed: Claimed, server: str, classification: Classification
    ) -> float | None:
        """Of a mail that hears "full" only if the server took others meanwhile: a quota may last for days."""
        is_full = classification.outcome is Outcome.FULL
        is_fault_told = is_full or classification.outcome is Outcome.UNREACHABLE
        if not is_fault_told or not classification.is_answer or not self._may_be_given_up(claimed):
            return None
        alone_seconds = math.inf if is_full else 2 * self._fleet.settings.delivery.give_up_after_seconds
        ask = partial(
            self._fleet.ledger.answered_since,
            claimed.delivery_id,
            server,
            classification.outcome.value,
            alone_seconds,
        )
        return await self._known(ask)

    async def _refused_since(self, claimed: Claimed, classification: Classification) -> float | None:
        if classification.outcome is not Outcome.POLICY or not self._may_be_given_up(claimed):
            return None
        return await self._known(partial(self._fleet.ledger.refused_since, claimed.delivery_id))

    def _may_be_given_up(self, claimed: Claimed) -> bool:
        """Whether its first attempt is so long ago; most mail need not be looked up."""
        return self.now() - claimed.first_attempt_at >= self._fleet.settings.delivery.give_up_after_seconds

    async def _known(self, ask: Callable[[], float | None]) -> float | None:
        """A time that the ledger knows; None while the database is away: nothing is given up then."""
        try:
            return await self._in_thread(ask)
        except DatabaseUnavailable:
            return None

    async def fill(self, server: str, seconds: float, reason: str) -> None:
        """The server takes no more for so long: it said so."""
        await self._in_thread(partial(self._fleet.board.set_full_for, server, seconds, reason))

    async def carry_out(self, letter: Letter, decision: Decision, server: str, reason: str = "") -> None:
        """What a decision means for others than its delivery: a full server, a block, a pause."""
        if decision.full_seconds is not None:
            await self.fill(server, decision.full_seconds, reason)
        if decision.block is not None or decision.pause_reason is not None:
            try:
                await self._in_thread(partial(self._write_down, letter, decision))
            except DatabaseUnavailable:
                log.warning("a block could not be written down; the next refusal tries again")

    async def refresh(self) -> None:
        await self._in_thread(self._fleet.refresh)

    def now(self) -> float:
        return self._fleet.now()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._fleet.close()
        self._fleet.board.close()

    def _report(self, server: str, fault: Fault | None, token: str) -> Change | None:
        try:
            return self._fleet.report(server, fault, token=token)
        except DatabaseUnavailable:
            log.warning("a change of a server's breaker could not be written down", extra={"server": server})
            return None

    def _write_down(self, letter: Letter, decision: Decision) -> None:
        ledger = self._fleet.ledger
        if (block := decision.block) is not None:
            ledger.add_block(
                server=block.server,
                sender=block.sender,
                domain=block.domain,
                until=block.until,
                reason=block.reason,
            )
            self._fleet.refresh_soon()
            self._fleet.refresh()
        if decision.pause_reason is not None:
            self._pause(letter, decision.pause_reason)

    def _pause(self, letter: Letter, reason: str) -> None:
        ledger = self._fleet.ledger
        if ledger.pause_by_policy(letter.campaign_id, reason):
            ledger.record_event(
                "campaign",
                campaign=letter.name,
                from_state=Status.RUNNING,
                to_state=Status.PAUSED,
                reason=reason,
            )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def says_nothing(classification: Classification) -> bool:
    """Of what does not count against the server: whether it does not speak for it either."""
    return classification.outcome in SAYS_NOTHING or classification.rule in OUR_OWN_RULES
