"""Judges the history of a run with faults. Pure: what it is given is all that it knows.

C  everybody is final, or uncertain, or alive with something that wakes them; the counts add up
D  no recipient's mail is accepted twice, over all servers, unless what was uncertain was resent in between
T  `sent` means that a server accepted it
H  what a server accepted is `sent` or `uncertain`
U  no more is uncertain than faults can have met after a commit point, and none far from every such fault
L  everything else is final soon after the last fault was healed, or after the last sending without one
R  whoever is `failed` was refused, given up after deferrals for long enough, or cost too many workers;
   who is `cancelled` is of a cancelled campaign, and who is `suppressed` is on the list;
   nobody is claimed who is on it
K  no commit point is passed while the campaign does not run
F  the next server is handed a dot only after a definite refusal, or no dot, on the one before
B  the bytes, header and envelope that arrived are those that were expected
P  no address and no secret where others may look
S  no change by a stale attempt: legal, under the attempt's own fence; no dot without a commit point, and
   none after the row was taken from its attempt
"""

from __future__ import annotations

import email
import email.message
import email.policy
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from urllib.parse import unquote

from campaigns.classifier import stated_wait
from campaigns.demo.mail_record import AcceptedMail
from campaigns.reply import Fault as Cause
from campaigns.reply import Phase
from campaigns.states import ALIVE, FINAL, State, Status, is_legal
from tests.faults.history import CampaignSeen, Change, DeliverySeen, Expected, Fault, History, Report

__all__ = ["Violation", "judge"]

_ALWAYS = {"date", "message-id", "mime-version", "content-type", "content-transfer-encoding"}
_HELD = frozenset({State.CLAIMED, State.COMMITTING})
_JITTER = 1.2
_SLACK_SECONDS = 60.0
_CLOCK_SECONDS = 2.0
"""What a worker thinks of the database's clock may be so far off."""
_UNSEEN_SECONDS = 2.0
"""So long after it was written an entry of the suppression list is committed, and seen by each claim."""
_NEAR_SECONDS = 20.0
"""A mail that a fault has met was past its commit point, and without an outcome, so near to it."""
_TICK_SECONDS = 0.01
"""SQLite's clock has milliseconds."""
_ARRIVAL_SECONDS = 0.5
"""So long after it was written a dot may reach a server to which nothing was done; all is on one machine."""
_DRAIN_SECONDS = 5.0
"""What was held back on the way to a server has come to it so soon after the healing."""
_ANSWERS_THE_MAIL = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT})
"""Before that nothing was said of the recipient or the mail."""
_AFTER_THE_SENDER = _ANSWERS_THE_MAIL - {Phase.MAIL}
_UNFIT = f"{Phase.MAIL} {Cause.RENDER}"
_UNFIT_FOR_THIS_SERVER = (f"{Phase.MAIL} {Cause.UTF8}", f"{Phase.MAIL} {Cause.SIZE}")
"""How an attempt words that it did not ask the server at all."""
_AT_REST = frozenset({Status.DRAFT, Status.SCHEDULED, Status.PAUSED})


@dataclass(frozen=True, kw_only=True, order=True)
class Violation:
    """Which property does not hold, and what shows it."""

    property: str
    what: str
    delivery_id: int | None = None

    def __str__(self) -> str:
        whom = f" delivery {self.delivery_id}:" if self.delivery_id is not None else ""
        return f"{self.property}:{whom} {self.what}"


def judge(history: History) -> list[Violation]:
    """Every violation of every property; an empty list means that the promise was kept."""
    found = [
        violation
        for question in (
            _complete, _duplicates, _sent_is_accepted, _accepted_is_held, _uncertain, _late, _reasons,
            _kept_back, _failover, _bytes, _private, _stale,
        )
        for violation in question(history)
    ]  # fmt: skip
    return sorted(found, key=lambda violation: (violation.property, violation.delivery_id or 0))


# C


def _complete(history: History) -> Iterator[Violation]:
    for campaign in history.campaigns:
        yield from _counted(campaign, history.of_campaign.get(campaign.name, []))
    for delivery in history.deliveries:
        if delivery.state in ALIVE and not _wakes(history, delivery):
            yield _of(delivery, "C", f"is {delivery.state}, and nothing wakes it")


def _counted(campaign: CampaignSeen, rows: Sequence[DeliverySeen]) -> Iterator[Violation]:
    states = Counter(row.state for row in rows)
    kept = {state: count for state, count in campaign.kept.items() if count}
    if kept != dict(states) or campaign.total != len(rows):
        yield Violation(
            property="C", what=f"{campaign.name} counts {kept} of {campaign.total}, and has {dict(states)}"
        )
    if campaign.emails is not None and Counter(campaign.emails) != Counter(row.email for row in rows):
        lost = campaign.emails - {row.email for row in rows}
        yield Violation(
            property="C",
            what=f"{campaign.name} was to reach {len(campaign.emails)}, has {len(rows)}, lost {len(lost)}",
        )
    sent_by = Counter(row.server for row in rows if row.state is State.SENT)
    if campaign.sent_by != sent_by:
        yield Violation(
            property="C", what=f"{campaign.name} counts {campaign.sent_by} sent, and has {sent_by}"
        )
    alive = sum(states[state] for state in ALIVE)
    if campaign.status is Status.FINISHED and alive:
        yield Violation(property="C", what=f"{campaign.name} is finished, and {alive} are alive")
    if campaign.status is Status.RUNNING and rows and not alive:
        yield Violation(property="C", what=f"{campaign.name} still runs, and nobody is alive")


def _wakes(history: History, delivery: DeliverySeen) -> bool:
    if delivery.state is State.PENDING:
        return delivery.next_attempt_at is not None and delivery.next_attempt_at <= _latest(history, delivery)
    if delivery.state is State.QUEUED:
        return delivery.server is not None and delivery.queued_at is not None
    longest = history.seen_at + history.longest_lease_seconds + _CLOCK_SECONDS
    return delivery.lease_until is not None and delivery.lease_until <= longest


def _latest(history: History, delivery: DeliverySeen) -> float:
    """No mail waits for longer than the longest wait there is, or than it was asked to, and a fifth."""
    longest = max(history.longest_wait_seconds, stated_wait(delivery.reply or "") or 0.0)
    return history.seen_at + longest * _JITTER + _SLACK_SECONDS


# D, T, H


def _duplicates(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        mails = sorted(history.accepted_of.get(delivery.id, []), key=lambda mail: mail.at)
        resends = _resends(history, delivery) if len(mails) > 1 else []
        for earlier, later in itertools.pairwise(mails):
            if not any(earlier.at <= change.at <= later.at for change in resends):
                yield _of(delivery, "D", f"accepted by {earlier.server}, and again by {later.server}")
    for mail in history.accepted_of.get(None, []):
        yield Violation(property="D", what=f"{mail.server} accepted a mail of nobody: {mail.message_id}")


def _resends(history: History, delivery: DeliverySeen) -> list[Change]:
    """The changes that let go again what may have been sent: an operator's, or the policy's, in advance.

    The policy takes what its own attempt reported as uncertain, or the sweep for a vanished worker, no more.
    """
    by_policy = delivery.campaign in history.resending
    reports = history.reports_of.get(delivery.id, []) if by_policy else []
    doubts = {(one.fence, one.at) for one in reports if one.outcome == "uncertain"}
    return [
        change
        for change in history.changes_of.get(delivery.id, [])
        if change.is_resend
        or (
            change.old_state in {State.COMMITTING, State.UNCERTAIN}
            and change.new_state is State.PENDING
            and (change.old_fence, change.at) in doubts
        )
    ]


def _sent_is_accepted(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        servers = {mail.server for mail in history.accepted_of.get(delivery.id, [])}
        if delivery.state is State.SENT and delivery.server not in servers:
            by = ", ".join(sorted(servers)) or "nobody"
            yield _of(delivery, "T", f"is sent by {delivery.server}, and was accepted by {by}")


def _accepted_is_held(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        mails = history.accepted_of.get(delivery.id, [])
        if delivery.state in {State.SENT, State.UNCERTAIN} or not mails:
            continue
        last = max(mail.at for mail in mails)
        if not any(change.at >= last for change in _resends(history, delivery)):
            yield _of(delivery, "H", f"was accepted by {mails[-1].server}, and is {delivery.state}")


# U, L


def _uncertain(history: History) -> Iterator[Violation]:
    doubts = [delivery for delivery in history.deliveries if delivery.state is State.UNCERTAIN]
    most = _explained(history.faults)
    if len(doubts) > most:
        yield Violation(property="U", what=f"{len(doubts)} are uncertain, and faults explain {most}")
    near: Counter[frozenset[Fault]] = Counter()
    for delivery in doubts:
        doubt = history.doubt_of(delivery.id)
        if doubt is None or delivery.fence != doubt[0].new_fence:
            yield _of(delivery, "U", "is uncertain, and never passed its commit point")
        elif faults := _near(history, *doubt):
            near[faults] += 1
        else:
            yield _of(delivery, "U", "is uncertain, and no fault was near that leaves any so")
    for faults in near:
        count = sum(n for others, n in near.items() if others <= faults)
        if count > _explained(faults):
            what = f"{count} are uncertain near faults that explain {_explained(faults)}"
            yield Violation(property="U", what=what)


def _explained(faults: Iterable[Fault]) -> int:
    return sum(fault.may_leave_uncertain for fault in faults)


def _near(history: History, commit: Change, ended_at: float) -> frozenset[Fault]:
    """Those that were there, or nearly so, between this commit point and the moment of the doubt."""
    return frozenset(
        fault
        for fault in history.faults
        if fault.may_leave_uncertain
        and fault.began_at - _NEAR_SECONDS <= ended_at
        and commit.at <= (fault.healed_at or history.seen_at) + _NEAR_SECONDS
    )


def _late(history: History) -> Iterator[Violation]:
    since = history.quiet_since
    at_rest = {campaign.name for campaign in history.campaigns if campaign.status in _AT_REST}
    for delivery in history.deliveries:
        if delivery.state is State.UNCERTAIN or delivery.campaign in at_rest:
            continue
        late = 0.0 if since is None else delivery.updated_at - since
        if delivery.state in FINAL and late > history.final_within_seconds:
            what = "everything was healed" if history.faults else "the last campaign was sent"
            yield _of(delivery, "L", f"{delivery.state} only {late:.1f} s after {what}")
        elif delivery.state in ALIVE and not _waits_for_its_recipient(delivery, history.seen_at):
            yield _of(delivery, "L", f"is still {delivery.state} when all has come to rest")


def _waits_for_its_recipient(delivery: DeliverySeen, now: float) -> bool:
    waits = delivery.state is State.PENDING and (delivery.next_attempt_at or 0.0) > now
    return waits and delivery.deferrals > 0


# R


def _reasons(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        if delivery.state is State.CANCELLED and not _was_cancelled(history, delivery):
            yield _of(delivery, "R", "is cancelled, and its campaign was not")
        if delivery.state is State.SUPPRESSED and not _was_on_the_list(history, delivery):
            yield _of(delivery, "R", "is suppressed, and was not on the list")
        for claim in _claims_of_the_suppressed(history, delivery):
            yield _of(delivery, "R", f"fence {claim.new_fence} claimed it, and it was on the list")
        if delivery.state is not State.FAILED:
            continue
        told = [one for one in history.reports_of.get(delivery.id, []) if one.fence == delivery.fence]
        if not any(_is_reason_to_fail(history, delivery, report) for report in told):
            words = ", ".join(f"{one.outcome} at {one.phase} {one.code}" for one in told)
            yield _of(delivery, "R", f"is failed without a reason: {words or 'nothing was reported'}")


def _was_cancelled(history: History, delivery: DeliverySeen) -> bool:
    """The campaign's status comes first, then its rows."""
    changes = history.changes_of.get(delivery.id, [])
    return any(
        change.new_state is State.CANCELLED and history.status_at(change) is Status.CANCELLED
        for change in changes
    )


def _was_on_the_list(history: History, delivery: DeliverySeen) -> bool:
    since = history.suppressions.get(delivery.dedupe_key)
    return since is not None and since <= delivery.updated_at + _CLOCK_SECONDS


def _claims_of_the_suppressed(history: History, delivery: DeliverySeen) -> list[Change]:
    """Those that came when the address was on the list, which is for every campaign and stream.

    What an attempt holds by then goes on. An entry that was added again has its last time; one that was taken
    off is in no history, and nobody does that here.
    """
    since = history.suppressions.get(delivery.dedupe_key, math.inf) + _UNSEEN_SECONDS
    changes = history.changes_of.get(delivery.id, [])
    return [change for change in changes if change.new_state is State.CLAIMED and change.at > since]


def _is_reason_to_fail(history: History, delivery: DeliverySeen, report: Report) -> bool:
    """A refusal, also of our own where a letter cannot be rendered; or it was tried for long enough.

    Long enough is for `give_up_after`, from the first deferral on, or from the first answer of a server that
    took other mail meanwhile; twice as long where that did not. A server that says that it is full may be so
    for days: that it took no other is then no reason.
    """
    if report.outcome == "rejected":
        is_refused = report.code in range(500, 600) and report.phase in _ANSWERS_THE_MAIL
        return is_refused or _is_unfit(report, _UNFIT)
    if report.outcome.startswith("policy"):
        return report.code in range(400, 600) or _is_unfit(report, *_UNFIT_FOR_THIS_SERVER)
    changes = history.changes_of.get(delivery.id, [])
    retried = max((change.new_fence for change in changes if change.is_operators_retry), default=0)
    own = [one for one in history.reports_of[delivery.id] if retried < one.fence <= report.fence]
    if report.outcome == "crashed":
        return sum(one.outcome == "crashed" for one in own) >= history.max_crashes
    if report.outcome == "deferred":
        return _since_the_first(own, report) >= history.give_up_after_seconds - _CLOCK_SECONDS
    return _is_answered(report) and _was_answered_in_vain(history, own, report)


def _was_answered_in_vain(history: History, own: Iterable[Report], report: Report) -> bool:
    if report.outcome not in {"unreachable", "full"}:
        return False
    tried_seconds = _since_the_first([one for one in own if _is_answered(one)], report)
    is_long = tried_seconds >= history.give_up_after_seconds - _CLOCK_SECONDS
    is_very_long = tried_seconds >= 2 * history.give_up_after_seconds - _CLOCK_SECONDS
    if is_very_long and report.outcome == "unreachable":
        return True
    return is_long and _took_other_mail(history, report, report.at - tried_seconds)


def _since_the_first(reports: Iterable[Report], last: Report) -> float:
    """The seconds since the first report like this one; of a first one none have passed."""
    return last.at - min((one.at for one in reports if one.outcome == last.outcome), default=last.at)


def _is_answered(report: Report) -> bool:
    """The server was reached, and would not have this mail."""
    return report.code is not None and report.phase in _ANSWERS_THE_MAIL - {Phase.MAIL}


def _took_other_mail(history: History, report: Report, since: float) -> bool:
    return any(
        one.outcome == "sent" and one.server == report.server and since < one.at <= report.at
        for one in history.reports
    )


def _is_unfit(report: Report, *words: str) -> bool:
    """It was found before the server was asked for anything."""
    return report.code is None and report.phase == Phase.MAIL and (report.reply or "").startswith(words)


# K


def _kept_back(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        for commit in _commit_points(history, delivery.id):
            status = history.status_at(commit)
            if status is not Status.RUNNING:
                what = f"fence {commit.new_fence} passed its commit point while the campaign was {status}"
                yield _of(delivery, "K", what)


# F


def _failover(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        commits = _commit_points(history, delivery.id)
        resends = _resends(history, delivery) if len(commits) > 1 else []
        for first, second in itertools.pairwise(commits):
            is_resent = any(first.seq < change.seq < second.seq for change in resends)
            if not is_resent and not _is_released(history, first):
                yield _of(
                    delivery,
                    "F",
                    f"{first.new_server} may have its dot of fence {first.new_fence}, and"
                    f" {second.new_server} was given fence {second.new_fence}",
                )
        allowed = Counter(commit.new_server or "" for commit in commits)
        taken = Counter(mail.server for mail in history.accepted_of.get(delivery.id, []))
        for server, count in (taken - allowed).items():
            yield _of(
                delivery, "F", f"{server} accepted it {count} more times than commit points were passed"
            )


def _commit_points(history: History, delivery_id: int) -> list[Change]:
    changes = history.changes_of.get(delivery_id, [])
    return [change for change in changes if change.new_state is State.COMMITTING]


def _is_released(history: History, commit: Change) -> bool:
    """Whether its dot was refused or never given, for certain."""
    return any(
        report.fence == commit.new_fence and report.says_that_no_mail_was_taken
        for report in history.reports_of.get(commit.delivery_id, [])
    )


# B


def _bytes(history: History) -> Iterator[Violation]:
    for delivery_id, expected in history.expected.items():
        for mail in history.accepted_of.get(delivery_id, []):
            for what in _differences(expected, mail):
                yield Violation(property="B", what=what, delivery_id=delivery_id)


def _differences(expected: Expected, mail: AcceptedMail) -> Iterator[str]:
    if mail.recipient != expected.envelope_recipient:
        yield "went to another recipient"
    if mail.sender != expected.envelope_sender:
        yield f"came from {mail.sender}, not from {expected.envelope_sender}"
    if mail.data is None:
        yield "was not kept: start the servers with --data"
        return
    raw = mail.data.encode("latin-1")
    if set(b"\r\n") & set(raw.replace(b"\r\n", b"")):
        yield "has a bare CR or LF"
    parsed = email.message_from_bytes(raw, policy=email.policy.compat32)
    fields = {name.lower(): str(value) for name, value in parsed.raw_items()}
    names = Counter(name.lower() for name in parsed)
    wanted = Counter({*(name.lower() for name in expected.headers), *_ALWAYS})
    if names != wanted:
        yield f"has the header fields {dict(names - wanted)} too many, {dict(wanted - names)} too few"
        return
    for name, value in expected.headers.items():
        found = fields[name.lower()]
        if found != value and _decoded(name, found) != value:
            yield f"{name} is {_decoded(name, found)!r}, not {value!r}"
    if _lines(_text(parsed)) != _lines(expected.text):
        yield "its text is not the one that was expected"


def _decoded(name: str, found: str) -> str:
    """What a reader sees of a field that is folded or encoded; slow, so not asked of those that are plain."""
    return str(email.policy.default.header_fetch_parse(name, found))


def _text(parsed: email.message.Message) -> str:
    content = parsed.get_payload(decode=True)
    return content.decode(parsed.get_content_charset("ascii")) if isinstance(content, bytes) else ""


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


# P


def _private(history: History) -> Iterator[Violation]:
    known = {delivery.email.lower() for delivery in history.deliveries}
    for name, dump in history.dumps.items():
        found = _known_in(dump, known)
        if found:
            yield Violation(property="P", what=f"{name} has {len(found)} addresses, such as {min(found)}")
        for secret in history.secrets:
            if secret in dump:
                yield Violation(property="P", what=f"{name} has a secret at {dump.index(secret)}")


def _known_in(dump: str, known: Set[str]) -> set[str]:
    """Those that are in it, whatever stands around them; also where it is encoded as in a URL."""
    text = dump.lower()
    decoded = [unquote(text).lower()] if "%" in text else []
    locals_ = {len(address.rpartition("@")[0]) for address in known}
    domains = {address.rpartition("@")[2] for address in known}
    sizes = {len(domain) for domain in domains}
    return {
        found
        for each in [text, *decoded]
        for at in _places(each, "@")
        for size in sizes
        if each[at + 1 : at + 1 + size] in domains
        for local in locals_
        if at >= local and (found := each[at - local : at + 1 + size]) in known
    }


def _places(text: str, sign: str) -> Iterator[int]:
    at = text.find(sign)
    while at >= 0:
        yield at
        at = text.find(sign, at + 1)


# S


def _stale(history: History) -> Iterator[Violation]:
    for delivery in history.deliveries:
        previous: Change | None = None
        reports = history.reports_of.get(delivery.id, [])
        for change in history.changes_of.get(delivery.id, []):
            for what in _mistakes(previous, change, reports):
                yield _of(delivery, "S", what)
            previous = change
        stands = (delivery.state, delivery.fence)
        if previous is None and stands not in {(State.PENDING, 0), (State.SUPPRESSED, 0)}:
            yield _of(delivery, "S", f"is {delivery.state}({delivery.fence}), and nothing made it so")
        if previous is not None and stands != (previous.new_state, previous.new_fence):
            yield _of(delivery, "S", f"is {delivery.state}({delivery.fence}) after a change to {previous}")
        committed = {change.new_fence for change in _commit_points(history, delivery.id)}
        for report in reports:
            if report.phase == "dot" and report.fence not in committed:
                yield _of(delivery, "S", f"fence {report.fence} gave a dot, and passed no commit point")
        for mail in _stale_dots(history, delivery):
            yield _of(delivery, "S", f"{mail.server} had a dot at {mail.at:.3f} that nobody might give")


def _stale_dots(history: History, delivery: DeliverySeen) -> Iterator[AcceptedMail]:
    """Those that came when no attempt of that server, which had given none yet, was past its commit point.

    All attempts send one Message-ID; whose dot it was is told by server and time. That the server accepts
    long after (a tarpit) does not matter: it notes when the dot came.
    """
    unused = _whiles_at_the_dot(history, delivery)
    for mail in sorted(history.accepted_of.get(delivery.id, []), key=lambda mail: mail.at):
        own = [one for one in unused if one.allows(mail) or _was_held_back(history, one, mail)]
        if own:
            unused.remove(own[0])
        else:
            yield mail


@dataclass(frozen=True, kw_only=True)
class _AtTheDot:
    """From its commit point until its row said something else an attempt might write its dot."""

    server: str | None
    since: float
    until: float

    def allows(self, mail: AcceptedMail) -> bool:
        in_time = self.since - _TICK_SECONDS <= mail.at <= self.until + _ARRIVAL_SECONDS
        return self.server == mail.server and in_time


def _whiles_at_the_dot(history: History, delivery: DeliverySeen) -> list[_AtTheDot]:
    changes = history.changes_of.get(delivery.id, [])
    ends = [*(change.at for change in changes[1:]), math.inf]
    return [
        _AtTheDot(server=change.new_server, since=change.at, until=until)
        for change, until in zip(changes, ends, strict=False)
        if change.new_state is State.COMMITTING
    ]


def _was_held_back(history: History, own: _AtTheDot, mail: AcceptedMail) -> bool:
    """A dot that was written in time, and that a fault of its server kept on its way for all that time."""
    return own.server == mail.server and any(
        fault.target == mail.server
        and fault.began_at <= own.until + _ARRIVAL_SECONDS
        and own.until < mail.at <= (fault.healed_at or history.seen_at) + _DRAIN_SECONDS
        for fault in history.faults
    )


def _mistakes(previous: Change | None, change: Change, reports: list[Report]) -> Iterator[str]:
    step = f"{change.old_state}({change.old_fence}) -> {change.new_state}({change.new_fence})"
    before = (State.PENDING, 0) if previous is None else (previous.new_state, previous.new_fence)
    if before != (change.old_state, change.old_fence):
        yield f"{step} does not follow from {before[0]}({before[1]})"
    if change.old_state is not change.new_state and not is_legal(change.old_state, change.new_state):
        yield f"{step} is not legal"
    if change.new_fence != change.old_fence + _rise(change):
        yield f"{step}: the fence must rise by {_rise(change)}"
    if change.new_state is State.COMMITTING and change.old_owner != change.new_owner:
        yield f"{step}: claimed by {change.old_owner}, committed by {change.new_owner}"
    if _needs_a_report(change) and not any(_explains(report, change) for report in reports):
        told = ", ".join(f"{one.outcome} of fence {one.fence}" for one in reports if one.at == change.at)
        yield f"{step} was nobody's to make; at that time: {told or 'nothing'}"


def _rise(change: Change) -> int:
    """A claim raises the fence, and an operator's retry; what is uncertain may also go back by its own."""
    if change.new_state is State.CLAIMED:
        return 1
    if change.new_state is State.PENDING and change.old_state is State.FAILED:
        return 1
    return int(change.is_resend)


def _needs_a_report(change: Change) -> bool:
    """What an attempt held ends by its own report, or the sweep's; or the campaign was cancelled."""
    if change.is_operators_retry or change.new_state in {State.CANCELLED, State.COMMITTING}:
        return False
    return change.old_state in _HELD | {State.UNCERTAIN} or change.new_state is State.SENT


def _explains(report: Report, change: Change) -> bool:
    """A report was made in the change's own transaction, under its fence; a definite 250 may be older."""
    if change.new_state is State.SENT:
        return report.outcome == "sent" and report.fence <= change.old_fence and report.at <= change.at
    return report.at == change.at and report.fence == change.old_fence


def _of(delivery: DeliverySeen, name: str, what: str) -> Violation:
    return Violation(property=name, what=what, delivery_id=delivery.id)
