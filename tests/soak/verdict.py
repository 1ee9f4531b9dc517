"""What came of a soak: the checker's violations, and some figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from campaigns.demo.mail_record import AcceptedMail
from campaigns.states import State
from tests.faults.checker import Violation, judge
from tests.faults.history import History, collect
from tests.soak.doubts import unexplained, with_faults
from tests.soak.faults import DRILL_DOMAIN
from tests.soak.installation import Installation
from tests.soak.lanes import Log
from tests.soak.traffic import Traffic, expected

__all__ = ["Verdict", "verdict"]

STORIES = 10


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`drill_mails`: those that drills sent, which are no campaign's."""

    history: History
    log: Log
    violations: Sequence[Violation]
    drill_mails: int
    ended_workers: Sequence[int]

    @property
    def is_good(self) -> bool:
        return not self.violations and not self.log.troubles

    @property
    def faults(self) -> int:
        return sum(planned.is_fault for planned, _ in self.log.injected)

    def text(self) -> str:
        return "\n".join([*self._figures(), *self._failures()])

    def _figures(self) -> Iterator[str]:
        history = self.history
        states = Counter(str(delivery.state) for delivery in history.deliveries)
        done = Counter(f"{planned.lane} {planned.kind}" for planned, _ in self.log.injected)
        operated = sum(done.values()) - self.faults
        yield f"campaigns    {len(history.campaigns):,}"
        yield f"recipients   {len(history.deliveries):,}: {_listed(states)}"
        yield f"accepted     {len(history.accepted):,} mails, and {self.drill_mails} of drills"
        yield f"faults       {self.faults:,}, and {operated} actions of the operator"
        yield from (f"             {count:>5}  {kind}" for kind, count in sorted(done.items()))
        yield f"not possible {len(self.log.refused)} (such as: no campaign to pause at that moment)"
        statuses = ", ".join(map(str, sorted(set(self.ended_workers))))
        ended = f"ended by themselves, with {statuses}" if statuses else "ended by themselves"
        yield f"workers      {len(self.ended_workers)} {ended}"
        by_kind: Counter[str] = Counter()
        for fault in history.faults:
            by_kind[f"{fault.target} {fault.kind}"] += fault.may_leave_uncertain
        doubts = {kind: count for kind, count in by_kind.items() if count}
        yield f"uncertain    {states['uncertain']}, of which faults explain: {_listed(doubts)}"
        yield f"violations   {len(self.violations)}"

    def _failures(self) -> Iterator[str]:
        yield from (f"TROUBLE {planned}: {what}" for planned, what in self.log.troubles)
        yield from (str(violation) for violation in self.violations[:50])
        numbers = dict.fromkeys(one.delivery_id for one in self.violations if one.delivery_id is not None)
        for number in list(numbers)[:STORIES]:
            yield f"delivery {number}:\n{self.history.story(number)}"


def _listed(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) or "none"


def verdict(installation: Installation, traffic: Traffic, log: Log, *, settle_seconds: float) -> Verdict:
    """Read everything, and judge it."""
    accepted = installation.accepted()
    of_drills = [mail for mail in accepted if mail.recipient.endswith(f"@{DRILL_DOMAIN}")]
    history = collect(
        installation.database,
        [mail for mail in accepted if not mail.recipient.endswith(f"@{DRILL_DOMAIN}")],
        emails=traffic.emails,
        expected=expected,
        dumps=installation.dumps(),
        final_within_seconds=settle_seconds,
        rules=installation.settings.delivery,
    )
    injected = [one for _, one in log.injected]
    history = with_faults(history, injected)
    return Verdict(
        history=history,
        log=log,
        violations=[
            *judge(history),
            *_own(history, traffic, of_drills),
            *(
                Violation(property="U", what="is uncertain, and no fault explains it", delivery_id=number)
                for number in unexplained(history, injected)
            ),
        ],
        drill_mails=len(of_drills),
        ended_workers=[status for slot in installation.slots.values() for _, status in slot.ended],
    )


def _own(history: History, traffic: Traffic, of_drills: Sequence[AcceptedMail]) -> Iterator[Violation]:
    if traffic.failure is not None:
        yield Violation(property="C", what=f"campaigns could not be added any more: {traffic.failure!r}")
    if lost := set(traffic.emails) - {campaign.name for campaign in history.campaigns}:
        yield Violation(property="C", what=f"these campaigns are lost: {sorted(lost)}")
    twice = [
        name for name, count in Counter(mail.message_id for mail in of_drills).items() if count > 1
    ]  # a drill's mail is one message for one seed
    if twice:
        yield Violation(property="D", what=f"mail of a drill was accepted twice: {twice[:5]}")
    for delivery in history.deliveries:
        if delivery.state is State.FAILED and delivery.email.startswith("r+"):
            yield Violation(
                property="T", what=f"failed, and nobody refused it: {delivery.reply}", delivery_id=delivery.id
            )
