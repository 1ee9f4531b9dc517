"""What next: from an outcome and the facts to the next state. Pure, and meant to be read aloud."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal, Protocol

from campaigns.classifier import Classification, Outcome, Scope
from campaigns.reply import Stop
from campaigns.states import State

__all__ = ["Block", "Decision", "DeliveryRules", "Facts", "decide"]

Random = Callable[[], float]
TaskState = Literal["success", "retry", "failure", "ignored"]

SOON_SECONDS = 3.0
"""How long mail waits for a server when none is usable."""
LONGEST_BRAKE_SECONDS = 60.0
FULL_SECONDS = 60.0
"""How long a server is full when it does not say."""
POLICY_WAIT_SECONDS = 60.0
POLICY_DOMAINS = 3
"""So many distinct recipient domains make a refusal ours and not an odd receiver's."""
SENDER_BLOCK_SECONDS = 3600.0
DOMAIN_BLOCK_SECONDS = 4 * 3600.0
THROTTLED_SECONDS = 300.0
"""How long a domain takes no more from a server when it does not say."""


class DeliveryRules(Protocol):
    """The part of settings.Delivery that decides."""

    @property
    def on_uncertain(self) -> str: ...
    @property
    def retry_after_seconds(self) -> tuple[float, ...]: ...
    @property
    def give_up_after_seconds(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the delivery beside the attempt's outcome.

    `usable_servers`: the route's others (without `server`) that may take it now, best first.
    `tried_by_policy`: those that refused this delivery by policy.
    `blocked`: those of the route taken off this sender or domain.
    `policy_domains`: by server, the recipient domains that refused this campaign's sender by policy there,
    since it began to run.
    `deferred_since`: when it was first deferred since it was last made new; None: never, or nobody knows.
    `answered_since`: when a server first answered this mail with a fault of its own, if this one took other
    mail since, or long ago; None where nobody knows.
    `refused_since`: when a server first refused it by policy.
    `is_full_for_others`: whether `server` told other mails, too, that it is full, and took none meanwhile.
    `attempts`: how often it was claimed (the fence); slows a mail that makes every server stumble.
    """

    server: str
    route: tuple[str, ...]
    usable_servers: tuple[str, ...] = ()
    deferrals: int = 0
    attempts: int = 1
    first_attempt_at: float | None = None
    deferred_since: float | None = None
    answered_since: float | None = None
    refused_since: float | None = None
    is_full_for_others: bool = True
    tried_by_policy: frozenset[str] = frozenset()
    blocked: frozenset[str] = frozenset()
    policy_domains: Mapping[str, Set[str]] = field(default_factory=dict)
    sender: str = ""
    domain: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Take `server` off a sender, or off a recipient domain, until a time (epoch seconds)."""

    server: str
    sender: str | None = None
    domain: str | None = None
    until: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to record. `to` is None when there is nothing to record: the delivery is another's by now.

    `full_seconds`: how long the server is full, to be told to the health board.
    """

    to: State | None
    to_server: str | None = None
    wait_seconds: float = 0.0
    deferral: bool = False
    block: Block | None = None
    pause_reason: str | None = None
    full_seconds: float | None = None
    task_state: TaskState = "retry"


def decide(  # noqa: PLR0911 - one line per outcome
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float, random: Random
) -> Decision:
    """Say what becomes of a delivery. Times are epoch seconds; `random` returns [0, 1)."""
    match classification.outcome:
        case Outcome.SENT:
            return Decision(to=State.SENT, to_server=facts.server, task_state="success")
        case Outcome.REJECTED:
            return failed()
        case Outcome.DEFERRED:
            return deferred(classification, facts, delivery, now, random)
        case Outcome.UNREACHABLE:
            return unreachable(classification, facts, delivery, now, random)
        case Outcome.FULL:
            return full(classification, facts, delivery, now, random)
        case Outcome.POLICY:
            return policy(classification, facts, delivery, now, random)
        case Outcome.UNCERTAIN:
            return uncertain(facts, delivery, now, random)
        case Outcome.STOPPED:
            return stopped(classification)


def failed() -> Decision:
    return Decision(to=State.FAILED, task_state="failure")


def rerouted(server: str) -> Decision:
    return Decision(to=State.QUEUED, to_server=server)


def waiting(seconds: float, random: Random) -> Decision:
    return Decision(to=State.PENDING, wait_seconds=jittered(seconds, random))


def jittered(seconds: float, random: Random) -> float:
    """Up to a fifth longer, never shorter: what a server asked for is kept."""
    return seconds * (1.0 + 0.2 * random())


def deferred(
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float, random: Random
) -> Decision:
    """The same server again, later: greylisting remembers who asked.

    A domain that takes no more from this server for now gets none from it until then. The time to give up
    begins with the first deferral: whatever held the mail back before is not the recipient's fault.
    """
    if is_given_up(facts.deferred_since, delivery, now):
        return failed()
    wait_seconds = max(backoff_seconds(facts.deferrals, delivery), classification.wait_seconds or 0.0)
    return Decision(
        to=State.PENDING,
        to_server=facts.server,
        wait_seconds=jittered(wait_seconds, random),
        deferral=True,
        block=throttled(classification, facts, now) if of_a_domain(classification, facts) else None,
    )


def backoff_seconds(deferrals: int, delivery: DeliveryRules) -> float:
    steps = delivery.retry_after_seconds
    return steps[min(deferrals, len(steps) - 1)]


def is_given_up(since: float | None, delivery: DeliveryRules, now: float) -> bool:
    return since is not None and now - since >= delivery.give_up_after_seconds


def unreachable(
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float, random: Random
) -> Decision:
    """At once to another; if there is none, soon again.

    That a server is not reached is never a reason to give up. That it takes other mail and not this one is,
    in the end.
    """
    brake_seconds = brake(facts)
    if is_answered_in_vain(classification, facts, delivery, now):
        return failed()
    if brake_seconds:
        return waiting(brake_seconds, random)
    return rerouted(facts.usable_servers[0]) if facts.usable_servers else waiting(SOON_SECONDS, random)


def brake(facts: Facts) -> float:
    """A mail that has been round its route twice waits longer each time, so that it cannot spin."""
    free = 2 * len(facts.route) + facts.deferrals
    beyond = facts.attempts - free
    return 0.0 if beyond <= 0 else min(2.0 ** min(beyond, 10), LONGEST_BRAKE_SECONDS)


def is_answered_in_vain(
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float
) -> bool:
    """Whether it went round its route twice, and servers that took others answered it so for long enough."""
    return classification.is_answer and brake(facts) > 0 and is_given_up(facts.answered_since, delivery, now)


def full(
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float, random: Random
) -> Decision:
    """Through another at once, if one may take it. Full is the server, or the server for this domain.

    Or for this one mail, if it was said of a mail, and of no other since the server took one. Only such mail
    is given up, and is kept from another server while it waits: that one may say the same.

    What means our account closes the server for all at the first word, but for a minute at most until others
    hear it, too: should it have meant a recipient after all, he must not stop everybody's mail.
    """
    full_seconds = classification.wait_seconds or FULL_SECONDS
    for_domain = of_a_domain(classification, facts)
    for_all = not for_domain and (facts.is_full_for_others or not classification.is_answer)
    is_first_word = for_all and classification.of_our_account and not facts.is_full_for_others
    if not for_all and is_answered_in_vain(classification, facts, delivery, now):
        return failed()
    block = throttled(classification, facts, now) if for_domain else None
    told_seconds = None
    if for_all:
        told_seconds = min(full_seconds, FULL_SECONDS) if is_first_word else full_seconds
    brake_seconds = brake(facts)
    if facts.usable_servers and not brake_seconds:
        return Decision(
            to=State.QUEUED, to_server=facts.usable_servers[0], block=block, full_seconds=told_seconds
        )
    wait_seconds = max(full_seconds, brake_seconds)
    if facts.usable_servers and is_first_word:
        wait_seconds = max(min(full_seconds, slowed_seconds(facts, delivery)), brake_seconds)
    elif facts.usable_servers and (for_all or for_domain):
        wait_seconds = brake_seconds
    return Decision(
        to=State.PENDING,
        wait_seconds=jittered(wait_seconds, random),
        block=block,
        full_seconds=told_seconds,
    )


def of_a_domain(classification: Classification, facts: Facts) -> bool:
    return classification.scope is Scope.SERVER_DOMAIN and bool(facts.domain)


def throttled(classification: Classification, facts: Facts, now: float) -> Block:
    return Block(
        server=facts.server,
        domain=facts.domain,
        until=now + (classification.wait_seconds or THROTTLED_SECONDS),
        reason=f"takes no more for now ({classification.rule})",
    )


def policy(
    classification: Classification, facts: Facts, delivery: DeliveryRules, now: float, random: Random
) -> Decision:
    """One odd receiver fails its own mail.

    Several receivers through one server take it off the sender; through all of them, they stop the campaign.
    """
    if classification.scope is Scope.SERVER_DOMAIN:
        return elsewhere(facts, delivery, now, random, block=domain_block(classification, facts, now))
    if classification.scope is Scope.MESSAGE:
        return elsewhere(facts, delivery, now, random)
    condemned = [server for server in facts.route if len(refused_domains(facts, server)) >= POLICY_DOMAINS]
    if facts.server not in condemned:
        return elsewhere(facts, delivery, now, random)
    if set(facts.route) <= set(condemned):
        return Decision(to=State.PENDING, pause_reason=pause_reason(classification, facts))
    return elsewhere(facts, delivery, now, random, block=sender_block(classification, facts, now))


def refused_domains(facts: Facts, server: str) -> Set[str]:
    known = facts.policy_domains.get(server, frozenset())
    return known | {facts.domain} if server == facts.server else known


def elsewhere(
    facts: Facts, delivery: DeliveryRules, now: float, random: Random, *, block: Block | None = None
) -> Decision:
    """To a server that has not refused this mail; else it fails alone.

    If one cannot take it now (a standby that rests, perhaps), it waits, longer each time, and not for ever.
    """
    refused = facts.tried_by_policy | {facts.server}
    for server in facts.usable_servers:
        if server not in refused:
            return Decision(to=State.QUEUED, to_server=server, block=block)
    is_over = is_given_up(facts.refused_since, delivery, now)
    if set(facts.route) - refused - facts.blocked and not is_over:
        wait_seconds = jittered(slowed_seconds(facts, delivery), random)
        return Decision(to=State.PENDING, wait_seconds=wait_seconds, block=block)
    return Decision(to=State.FAILED, block=block, task_state="failure")


def slowed_seconds(facts: Facts, delivery: DeliveryRules) -> float:
    """A minute, until it has been round its route twice; then as after a deferral."""
    beyond = facts.attempts - 2 * len(facts.route) - facts.deferrals
    return POLICY_WAIT_SECONDS if beyond <= 0 else backoff_seconds(beyond - 1, delivery)


def domain_block(classification: Classification, facts: Facts, now: float) -> Block:
    return Block(
        server=facts.server,
        domain=facts.domain,
        until=now + DOMAIN_BLOCK_SECONDS,
        reason=f"listed at this domain ({classification.rule})",
    )


def sender_block(classification: Classification, facts: Facts, now: float) -> Block:
    return Block(
        server=facts.server,
        sender=facts.sender,
        until=now + SENDER_BLOCK_SECONDS,
        reason=f"sender refused for {POLICY_DOMAINS} or more domains ({classification.rule})",
    )


def pause_reason(classification: Classification, facts: Facts) -> str:
    servers = ", ".join(facts.route)
    return f"refused by policy for {POLICY_DOMAINS} or more domains through {servers} ({classification.rule})"


def uncertain(facts: Facts, delivery: DeliveryRules, now: float, random: Random) -> Decision:
    """Held for the operator; sent again only where that was asked for, and not without end."""
    if delivery.on_uncertain != "resend" or is_given_up(facts.first_attempt_at, delivery, now):
        return Decision(to=State.UNCERTAIN, to_server=facts.server, task_state="failure")
    return waiting(backoff_seconds(0, delivery), random)


def stopped(classification: Classification) -> Decision:
    if classification.stop is Stop.FENCED:
        return Decision(to=None, task_state="ignored")
    return Decision(to=State.PENDING)
