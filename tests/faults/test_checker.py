"""The checker accepts a history in which all went well, and rejects one bad history of each kind."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from campaigns.demo.mail_record import AcceptedMail
from campaigns.states import State, Status
from tests.crowd import Crowd
from tests.faults.checker import judge
from tests.faults.history import (
    CampaignSeen,
    Change,
    DeliverySeen,
    Expected,
    Fault,
    FaultLog,
    History,
    Report,
    StatusChange,
    collect,
    watch,
)

P, Q, C, M = State.PENDING, State.QUEUED, State.CLAIMED, State.COMMITTING
ONE, TWO = "primary", "secondary"
MESSAGE = (
    "From: News <news@example.com>\r\nTo: r+{0}@example.com\r\nSubject: Hi\r\n"
    "Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <token.{0}@example.com>\r\nMIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHello\r\n"
)


def _delivery(number: int, state: State, **changes: Any) -> DeliverySeen:
    values: dict[str, Any] = {
        "id": number,
        "campaign": "spring",
        "email": f"r+{number}@example.com",
        "state": state,
        "server": ONE,
        "fence": 1,
        "updated_at": 13.0,
        "dedupe_key": f"r+{number}@example.com",
    }
    return DeliverySeen(**{**values, **changes})


def _mail(number: int, server: str = ONE, at: float = 12.5) -> AcceptedMail:
    return AcceptedMail(
        id=f"{server}-{number}-{at}",
        at=at,
        server=server,
        recipient=f"r+{number}@example.com",
        sender="news@example.com",
        message_id=f"<token.{number}@example.com>",
        size=1,
        sha256="",
        reply_sent=True,
        data=MESSAGE.format(number),
    )


class Chain:
    """The changes of one delivery, each from where the last one left it."""

    def __init__(self, number: int, *, fence: int = 0) -> None:
        self._number = number
        self._state, self._fence = P, fence
        self._server: str | None = None
        self._owner: str | None = None
        self.changes: list[Change] = []

    def to(self, state: State, at: float, *, server: str | None = None, raises: int = 0) -> "Chain":
        owner = f"owner {self._fence + raises}" if state in {C, M} else None
        self.changes.append(
            Change(
                seq=self._number * 100 + len(self.changes),
                delivery_id=self._number,
                old_state=self._state,
                new_state=state,
                old_fence=self._fence,
                new_fence=self._fence + raises,
                old_server=self._server,
                new_server=server or self._server,
                old_owner=self._owner,
                new_owner=owner,
                at=at,
            )
        )
        self._state, self._fence, self._owner = state, self._fence + raises, owner
        self._server = server or self._server
        return self

    def claimed(self, at: float, server: str = ONE) -> "Chain":
        return self.to(Q, at, server=server).to(C, at + 0.1, raises=1)

    def committed(self, at: float, server: str = ONE) -> "Chain":
        return self.claimed(at, server).to(M, at + 0.2)


def _report(number: int, outcome: str, at: float, *, fence: int = 1, **changes: Any) -> Report:
    code = {"sent": 250, "deferred": 451, "rejected": 550}.get(outcome)
    values: dict[str, Any] = {"server": ONE, "phase": "dot", "code": code}
    return Report(delivery_id=number, outcome=outcome, at=at, fence=fence, **{**values, **changes})


SENT = Chain(1).committed(12).to(State.SENT, 13.0)
REROUTED = (
    Chain(2)
    .committed(10)
    .to(Q, 11.0, server=TWO)
    .to(C, 11.1, raises=1)
    .to(M, 11.2)
    .to(State.SENT, 13.0, server=TWO)
)
UNCERTAIN = Chain(3).committed(12).to(State.UNCERTAIN, 13.0)
RESENT = (
    Chain(4)
    .committed(10)
    .to(State.UNCERTAIN, 11.0)
    .to(P, 11.5, raises=1)
    .committed(12.0)
    .to(State.SENT, 13.0)
)
CRASHED = Chain(5).claimed(10).to(P, 11.0).committed(12).to(State.SENT, 13.0)
FAILED = Chain(6).claimed(12).to(State.FAILED, 13.0)
SUPPRESSED = Chain(7).to(Q, 12.0, server=ONE).to(State.SUPPRESSED, 13.0)
CANCELLED = Chain(8).claimed(12).to(State.CANCELLED, 13.0)
UNTOUCHED = 9
"""Was on the list before the campaign was."""

GOOD = History(
    campaigns=[
        CampaignSeen(
            name="spring",
            token="token",
            status=Status.FINISHED,
            kept={State.SENT: 4, State.UNCERTAIN: 1, State.FAILED: 1, State.SUPPRESSED: 2, P: 0},
            total=8,
            sent_by={ONE: 3, TWO: 1},
            emails=frozenset(f"r+{number}@example.com" for number in range(1, 10) if number != 8),
        ),
        CampaignSeen(
            name="summer",
            token="summer's",
            status=Status.CANCELLED,
            kept={State.CANCELLED: 1},
            total=1,
            emails=frozenset({"r+8@example.com"}),
        ),
    ],
    deliveries=[
        _delivery(1, State.SENT),
        _delivery(2, State.SENT, server=TWO, fence=2),
        _delivery(3, State.UNCERTAIN),
        _delivery(4, State.SENT, fence=3),
        _delivery(5, State.SENT, fence=2),
        _delivery(6, State.FAILED),
        _delivery(7, State.SUPPRESSED, fence=0),
        _delivery(8, State.CANCELLED, campaign="summer"),
        _delivery(UNTOUCHED, State.SUPPRESSED, fence=0, server=None),
    ],
    changes=[
        change
        for chain in (SENT, REROUTED, UNCERTAIN, RESENT, CRASHED, FAILED, SUPPRESSED, CANCELLED)
        for change in chain.changes
    ],
    reports=[
        _report(1, "sent", 13.0),
        _report(2, "deferred", 11.0),
        _report(2, "sent", 13.0, fence=2, server=TWO),
        _report(3, "uncertain", 13.0, phase=None),
        _report(4, "uncertain", 11.0),
        _report(4, "sent", 13.0, fence=3),
        _report(5, "crashed", 11.0, phase=None),
        _report(5, "sent", 13.0, fence=2),
        _report(6, "rejected", 13.0, phase="rcpt"),
        _report(8, "unreachable", 14.0, phase="body"),
    ],
    status_changes=[
        StatusChange(seq=1, campaign="spring", old_status=Status.DRAFT, new_status=Status.RUNNING, at=9.0),
        StatusChange(seq=10_000, campaign="spring", old_status=Status.RUNNING, new_status=Status.FINISHED),
        StatusChange(seq=2, campaign="summer", old_status=Status.DRAFT, new_status=Status.RUNNING, at=9.0),
        StatusChange(seq=802, campaign="summer", old_status=Status.RUNNING, new_status=Status.CANCELLED),
    ],
    accepted=[_mail(1), _mail(2, TWO), _mail(3), _mail(4, at=10.5), _mail(4), _mail(5)],
    faults=[Fault(kind="kill", began_at=10.0, healed_at=11.0, may_leave_uncertain=1)],
    seen_at=20.0,
    final_within_seconds=5.0,
    longest_lease_seconds=20.0,
    suppressions={f"r+{number}@example.com": 11.0 for number in (7, UNTOUCHED)},
    expected={
        number: Expected(
            envelope_sender="news@example.com",
            envelope_recipient=f"r+{number}@example.com",
            headers={
                "From": "News <news@example.com>",
                "To": f"r+{number}@example.com",
                "Subject": "Hi",
            },
            text="Hello\n",
        )
        for number in range(1, 10)
    },
    dumps={"log": "campaign spring, delivery 1 sent; celery@here is ready"},
    secrets=["hunter2"],
)


def _dumped(text: str) -> History:
    return replace(GOOD, dumps={"log": text})


def _campaign(**changes: Any) -> History:
    return replace(GOOD, campaigns=[replace(GOOD.campaigns[0], **changes), *GOOD.campaigns[1:]])


def _row(number: int, **changes: Any) -> History:
    rows = [replace(row, **changes) if row.id == number else row for row in GOOD.deliveries]
    return replace(GOOD, deliveries=rows)


def _chain(number: int, chain: Chain) -> History:
    return replace(
        GOOD, changes=[*(one for one in GOOD.changes if one.delivery_id != number), *chain.changes]
    )


def _mails(*more: AcceptedMail, without: int = 0) -> History:
    kept = [mail for mail in GOOD.accepted if mail.message_id != f"<token.{without}@example.com>"]
    return replace(GOOD, accepted=[*kept, *more])


def _failed(outcome: str, **changes: Any) -> History:
    """The one that is failed had this report, and no other."""
    reports = [one for one in GOOD.reports if one.delivery_id != 6]
    return replace(GOOD, reports=[*reports, _report(6, outcome, 13.0, **{"phase": "rcpt", **changes})])


def _tried_twice(first: str, last: str = "", **changes: Any) -> History:
    """The one that is failed was tried twice, with these outcomes."""
    server = changes.get("server", ONE)
    chain = Chain(6).claimed(9.8, server).to(P, 10.0).claimed(12.8, server).to(State.FAILED, 13.0)
    reports = [
        _report(6, outcome, at, fence=fence, **{"phase": "rcpt", **changes})
        for outcome, at, fence in [(first, 10.0, 1), (last or first, 13.0, 2)]
    ]
    return _failed_and_retried(chain, State.FAILED, *reports)


def _retried() -> Chain:
    """Past its commit point it failed, and the operator had it tried again."""
    return Chain(6).committed(12.1).to(State.FAILED, 12.4).to(P, 12.5, raises=1)


def _failed_and_retried(
    last: Chain, state: State, *reports: Report, mails: Sequence[AcceptedMail] = ()
) -> History:
    """The one that is failed in the good history went this way instead, and ended in this state."""
    campaign = GOOD.campaigns[0]
    kept = Counter({**campaign.kept, State.FAILED: 0})
    kept[state] += 1
    return replace(
        _chain(6, last),
        campaigns=[
            replace(campaign, kept=kept, sent_by={**campaign.sent_by, ONE: kept[State.SENT] - 1}),
            *GOOD.campaigns[1:],
        ],
        deliveries=[
            _delivery(6, state, fence=last.changes[-1].new_fence) if row.id == 6 else row
            for row in GOOD.deliveries
        ],
        reports=[*(one for one in GOOD.reports if one.delivery_id != 6), *reports],
        accepted=[*GOOD.accepted, *mails],
    )


def _stood_still(status: Status, before: int, until: int) -> History:
    """The campaign stood still between these changes."""
    stops = [
        StatusChange(seq=before, campaign="spring", old_status=Status.RUNNING, new_status=status),
        StatusChange(seq=until, campaign="spring", old_status=status, new_status=Status.RUNNING, at=9.0),
    ]
    first, *others = GOOD.status_changes
    return replace(GOOD, status_changes=[*others, *stops, first])


def _all_became(state: State, *, by_a_change: bool, **changes: Any) -> History:
    """The campaign finished like this, and nothing else was ever done to it."""
    last = [Chain(number).to(state, 12.0) for number in range(1, 8)] if by_a_change else []
    return replace(
        GOOD,
        campaigns=[
            replace(GOOD.campaigns[0], kept={state: 7}, total=7, sent_by={}, emails=None),
            replace(GOOD.campaigns[1], kept={}, total=0, emails=None),
        ],
        deliveries=[_delivery(number, state, fence=0, server=None) for number in range(1, 8)],
        changes=[change for chain in last for change in chain.changes],
        reports=[],
        accepted=[],
        **changes,
    )


def _on_its_way(
    chain: Chain, state: State, reports: Sequence[Report], mails: Sequence[AcceptedMail]
) -> History:
    """The first one went this way instead, to this state."""
    rows = _row(1, state=state, fence=chain.changes[-1].new_fence).deliveries
    return replace(
        _chain(1, chain),
        deliveries=rows,
        reports=[*(one for one in GOOD.reports if one.delivery_id != 1), *reports],
        accepted=[*_mails(without=1).accepted, *mails],
    )


def _resent_by_policy(*reports: Report, mails: Sequence[AcceptedMail]) -> History:
    """With `on_uncertain = "resend"` the first one passed two commit points."""
    chain = Chain(1).committed(10).to(P, 11.0).committed(12).to(State.SENT, 13.0)
    history = _on_its_way(chain, State.SENT, [*reports, _report(1, "sent", 13.0, fence=2)], mails)
    return _resending(history)


def _resending(history: History) -> History:
    first, *others = history.campaigns
    return replace(history, campaigns=[replace(first, resends=True), *others])


def _uncertain_at(committed: float, at: float) -> History:
    """The one that is uncertain became so at this time."""
    history = _chain(3, Chain(3).committed(committed).to(State.UNCERTAIN, at))
    reports = [replace(one, at=at) if one.delivery_id == 3 else one for one in GOOD.reports]
    rows = _row(3, updated_at=at).deliveries
    mails = _mails(_mail(3, at=committed + 0.3), without=3).accepted
    return replace(history, deliveries=rows, reports=reports, accepted=mails, seen_at=at + 1.0)


def _one_more_is_uncertain(*faults: Fault) -> History:
    """And these were the faults."""
    chain = Chain(6).committed(12).to(State.UNCERTAIN, 13.0)
    doubt = _report(6, "uncertain", 13.0, phase=None)
    history = _failed_and_retried(chain, State.UNCERTAIN, doubt)
    return replace(history, faults=faults)


def _resent_and_then_the_first_dot(at: float) -> History:
    """The first attempt's dot comes so late, and its 250 counts: nobody has claimed the mail again."""
    chain = Chain(1).committed(10).to(State.UNCERTAIN, 11.0).to(P, 11.5, raises=1).to(State.SENT, 13.0)
    reports = [_report(1, "uncertain", 11.0, phase=None), _report(1, "sent", 13.0)]
    return _on_its_way(chain, State.SENT, reports, [_mail(1, at=at)])


def _without_report(number: int, outcome: str) -> History:
    reports = [one for one in GOOD.reports if (one.delivery_id, one.outcome) != (number, outcome)]
    return replace(GOOD, reports=reports)


def _listed(number: int, since: float) -> History:
    """This one's address came on the suppression list, too."""
    return replace(GOOD, suppressions={**GOOD.suppressions, f"r+{number}@example.com": since})


def _data(old: str, new: str) -> History:
    mail = GOOD.accepted[0]
    assert mail.data is not None
    return _mails(replace(mail, data=mail.data.replace(old, new)), without=1)


BAD = {
    "C: a row is gone": ("C", replace(GOOD, deliveries=GOOD.deliveries[1:])),
    "C: a counter is off by one": ("C", _campaign(kept={**GOOD.campaigns[0].kept, State.SENT: 3})),
    "C: the total is off by one": ("C", _campaign(total=9)),
    "C: a server's counter is off by one": ("C", _campaign(sent_by={ONE: 4, TWO: 1})),
    "C: somebody of the list was never added": ("C", _campaign(emails=frozenset({"x@example.com"}))),
    "C: finished with somebody alive": ("C", _row(7, state=P, next_attempt_at=99.0, deferrals=1)),
    "C: running with nobody alive": ("C", _campaign(status=Status.RUNNING)),
    "C: pending without a time": ("C", _row(7, state=P)),
    "C: queued without a time": ("C", _row(7, state=Q)),
    "C: pending for a thousand years": ("C", _row(7, state=P, next_attempt_at=3e10, deferrals=1)),
    "C: claimed without a lease": ("C", _row(7, state=C)),
    "C: claimed for longer than any lease": ("C", _row(7, state=C, lease_until=2_920.0)),
    "D: accepted by both": ("D", _mails(_mail(1, TWO, at=12.9))),
    "D: accepted twice by one": ("D", _mails(_mail(1, at=12.9))),
    "D: accepted again before the operator asked": ("D", _mails(_mail(4, at=10.7))),
    "D: a mail of nobody": ("D", _mails(replace(_mail(1), message_id="<other.1@example.com>"))),
    "D: accepted again after a retry of what had failed": (
        "D",
        _failed_and_retried(
            _retried().committed(12.6).to(State.SENT, 13.0),
            State.SENT,
            _report(6, "rejected", 12.4),
            _report(6, "sent", 13.0, fence=3),
            mails=[_mail(6, at=12.35), _mail(6, at=12.9)],
        ),
    ),
    "D: accepted four times, never uncertain, by the policy's leave": (
        "D",
        _resending(_mails(_mail(1, TWO, at=12.7), _mail(1, at=12.8), _mail(1, TWO, at=12.9))),
    ),
    "D: accepted again before the policy let it go": (
        "D",
        _resent_by_policy(
            _report(1, "uncertain", 11.0, code=None), mails=[_mail(1, at=10.5), _mail(1, at=10.8), _mail(1)]
        ),
    ),
    "T: nobody accepted it": ("T", _mails(without=1)),
    "T: another server accepted it": ("T", _mails(_mail(1, TWO), without=1)),
    "H: accepted, and failed": ("H", _mails(_mail(6))),
    "H: accepted, and suppressed": ("H", _mails(_mail(7))),
    "H: accepted, and cancelled": ("H", _mails(_mail(8))),
    "H: accepted, failed, retried and cancelled": (
        "H",
        _failed_and_retried(
            _retried().to(State.CANCELLED, 13.0),
            State.CANCELLED,
            _report(6, "rejected", 12.4),
            mails=[_mail(6, at=12.35)],
        ),
    ),
    "H: accepted, and still waiting": ("H", _row(1, state=P, next_attempt_at=99.0)),
    "U: more than the faults explain": ("U", replace(GOOD, faults=[])),
    "U: without a commit point": ("U", _chain(3, Chain(3).claimed(12).to(State.UNCERTAIN, 13.0))),
    "U: long after the only fault": ("U", _uncertain_at(900.0, 1_000.0)),
    "U: by a fault that leaves nobody so": (
        "U",
        replace(
            GOOD,
            faults=[
                Fault(kind="kill", began_at=10.0, healed_at=11.0),
                Fault(kind="kill", began_at=100.0, healed_at=101.0, may_leave_uncertain=1),
            ],
        ),
    ),
    "U: more near a fault than it explains, and it is another one that explains more": (
        "U",
        _one_more_is_uncertain(
            Fault(kind="kill", began_at=10.0, healed_at=11.0, may_leave_uncertain=1),
            Fault(kind="kill", began_at=100.0, healed_at=101.0, may_leave_uncertain=5),
        ),
    ),
    "L: long after the healing": ("L", _row(1, updated_at=16.5)),
    "L: long after the sending, where no fault was noted": (
        "L",
        replace(_row(1, updated_at=16.5), faults=[]),
    ),
    "L: queued for ever": ("L", _row(7, state=Q, queued_at=1.0)),
    "L: pending, and due": ("L", _row(7, state=P, next_attempt_at=19.0, deferrals=1)),
    "L: pending for no recipient's sake": ("L", _row(7, state=P, next_attempt_at=99.0)),
    "R: failed, as its server could not be reached": ("R", _failed("unreachable", phase="connect")),
    "R: failed, as its server could not be reached for long": (
        "R",
        replace(_failed("unreachable", phase="connect"), give_up_after_seconds=2.5),
    ),
    "R: failed, as its server went away at RCPT": (
        "R",
        replace(_failed("unreachable", code=None), give_up_after_seconds=2.5),
    ),
    "R: failed, as its server was busy at MAIL for long": (
        "R",
        replace(_failed("unreachable", phase="mail", code=451), give_up_after_seconds=2.5),
    ),
    "R: failed, as its server told of a fault once": ("R", _failed("unreachable", code=451)),
    "R: failed, as it was deferred once": ("R", _failed("deferred")),
    "R: failed over one worker": ("R", _failed("crashed", phase=None)),
    "R: failed, as it was stopped": ("R", _failed("stopped")),
    "R: failed by a refusal of an older attempt": ("R", _failed("rejected", fence=0)),
    "R: failed, as nobody answered at the connect": ("R", _failed("rejected", phase="connect", code=None)),
    "R: failed, as it was refused at the greeting": ("R", _failed("rejected", phase="greeting")),
    "R: failed, as nobody greeted": ("R", _failed("rejected", phase="greeting", code=None)),
    "R: failed by a temporary refusal": ("R", _failed("rejected", code=451)),
    "R: failed, as nobody answered at the dot": (
        "R",
        replace(
            _chain(6, Chain(6).committed(12).to(State.FAILED, 13.0)),
            reports=_failed("rejected", phase="dot", code=None).reports,
        ),
    ),
    "R: failed, as nobody answered at MAIL": (
        "R",
        _failed("rejected", phase="mail", code=None, reply="mail timeout"),
    ),
    "R: failed by a policy that nobody told": ("R", _failed("policy", phase="connect", code=None)),
    "R: cancelled, and no campaign was": ("R", _all_became(State.CANCELLED, by_a_change=True)),
    "R: cancelled before its campaign was": (
        "R",
        replace(
            GOOD,
            status_changes=[*GOOD.status_changes[:3], replace(GOOD.status_changes[3], seq=804)],
        ),
    ),
    "R: suppressed, and nobody is on the list": (
        "R",
        _all_became(State.SUPPRESSED, by_a_change=True, suppressions={}),
    ),
    "R: added as suppressed, and nobody is on the list": (
        "R",
        _all_became(State.SUPPRESSED, by_a_change=False, suppressions={}),
    ),
    "R: suppressed before they were on the list": (
        "R",
        replace(GOOD, suppressions=dict.fromkeys(GOOD.suppressions, 99.0)),
    ),
    "R: claimed and accepted long after it came on the list": ("R", _listed(1, 1.0)),
    "R: claimed before it came on the list, and again long after": ("R", _listed(5, 10.05)),
    "R: claimed and refused long after it came on the list": ("R", _listed(6, 10.05)),
    "R: failed at its first deferral, long after its first attempt": (
        "R",
        replace(_tried_twice("unreachable", "deferred", code=451), give_up_after_seconds=4.0),
    ),
    "R: failed, as it was deferred for some time": (
        "R",
        replace(_tried_twice("deferred"), give_up_after_seconds=6.0),
    ),
    "R: failed, as its server was not reached for long": (
        "R",
        replace(_tried_twice("unreachable", phase="connect"), give_up_after_seconds=4.0),
    ),
    "R: failed, as a server answered nobody well for long": (
        "R",
        replace(_tried_twice("unreachable", server="third", code=451), give_up_after_seconds=4.0),
    ),
    "R: failed, as a server was full for nobody else for some time": (
        "R",
        replace(_tried_twice("full", server=TWO, code=452), give_up_after_seconds=6.0),
    ),
    "R: failed, as a server was full for everybody for very long": (
        "R",
        replace(_tried_twice("full", server="third", code=452), give_up_after_seconds=1.0),
    ),
    "R: failed by nobody": ("R", _without_report(6, "rejected")),
    "K: a commit point before it was sent": (
        "K",
        replace(GOOD, status_changes=[replace(GOOD.status_changes[0], seq=103), *GOOD.status_changes[1:]]),
    ),
    "K: a commit point while it was paused": ("K", _stood_still(Status.PAUSED, 102, 150)),
    "K: a commit point after the cancel": (
        "K",
        replace(
            GOOD,
            status_changes=[
                *GOOD.status_changes[:1],
                replace(GOOD.status_changes[1], seq=102, new_status=Status.CANCELLED),
                *GOOD.status_changes[2:],
            ],
        ),
    ),
    "K: a commit point of a campaign that was never seen to run": ("K", replace(GOOD, status_changes=[])),
    "F: a dot without an answer, and another server": ("F", _without_report(2, "deferred")),
    "F: what was uncertain was given away": (
        "F",
        replace(
            GOOD,
            reports=[replace(r, outcome="uncertain", code=None) if r.at == 11.0 else r for r in GOOD.reports],
        ),
    ),
    "F: what may have been taken had failed, and was retried": (
        "F",
        _failed_and_retried(
            _retried().committed(12.6).to(State.SENT, 13.0),
            State.SENT,
            _report(6, "rejected", 12.4, phase=None, code=None),
            _report(6, "sent", 13.0, fence=3),
            mails=[_mail(6, at=12.9)],
        ),
    ),
    "F: accepted by a server without a commit point": ("F", _mails(_mail(6, TWO))),
    "F: the policy's leave, and a mail without a commit point": (
        "F",
        _resending(_mails(_mail(6, TWO))),
    ),
    "F: a second commit point by the policy's leave, and nothing was uncertain": (
        "F",
        _resent_by_policy(_report(1, "unreachable", 11.0, code=None), mails=[_mail(1)]),
    ),
    "F: a second commit point, as the policy takes what is uncertain, which is not this one's": (
        "F",
        replace(
            _resent_by_policy(_report(1, "uncertain", 11.0, code=None), mails=[_mail(1)]),
            campaigns=GOOD.campaigns,
        ),
    ),
    "B: another recipient": ("B", _mails(replace(_mail(1), recipient="x@example.com"), without=1)),
    "B: another sender": ("B", _mails(replace(_mail(1), sender="x@example.com"), without=1)),
    "B: a header too many": ("B", _data("Subject: Hi", "Subject: Hi\r\nBcc: x@example.com")),
    "B: a header twice": ("B", _data("Subject: Hi", "Subject: Hi\r\nSubject: Hi")),
    "B: a header too few": ("B", _data("Subject: Hi\r\n", "")),
    "B: another subject": ("B", _data("Subject: Hi", "Subject: Ho")),
    "B: a body cut short": ("B", _data("Hello", "Hell")),
    "B: a bare line feed": ("B", _data("Hello\r\n", "Hello\n")),
    "B: not kept": ("B", _mails(replace(_mail(1), data=None), without=1)),
    "P: an address": ("P", replace(GOOD, dumps={"log": "sent to <R+1@example.com>."})),
    "P: an address after a field's name": ("P", _dumped("email=r+1@example.com")),
    "P: an address after another one's": ("P", _dumped("to=r+1@example.com")),
    "P: an address in a mapping": ("P", _dumped("{'to': 'r+1@example.com'}")),
    "P: an address in octets": ("P", _dumped(repr((b"r+1@example.com", b"x")))),
    "P: an address in a URL": ("P", _dumped("GET /?to=R%2B1%40example.com")),
    "P: an address between others": ("P", _dumped("@@here,x@r+1@example.com@")),
    "P: a secret": ("P", replace(GOOD, dumps={"redis": "AUTH hunter2"})),
    "S: an illegal step": ("S", _chain(1, Chain(1).to(C, 12.0, raises=1).to(M, 12.1).to(State.SENT, 13.0))),
    "S: a fence that was handed back": (
        "S",
        _chain(5, Chain(5).claimed(10).to(P, 11.0, raises=-1).committed(12).to(State.SENT, 13.0)),
    ),
    "S: a claim under the old fence": (
        "S",
        _chain(1, Chain(1).to(Q, 12.0, server=ONE).to(C, 12.1).to(M, 12.2).to(State.SENT, 13.0)),
    ),
    "S: failed and retried under the same fence": (
        "S",
        replace(
            _chain(
                5, Chain(5).claimed(10).to(State.FAILED, 11.0).to(P, 11.5).committed(12).to(State.SENT, 13)
            ),
        ),
    ),
    "S: a change by a stale attempt": (
        "S",
        replace(GOOD, reports=[replace(r, fence=1) if r.at == 13.0 else r for r in GOOD.reports]),
    ),
    "S: a change by nobody": ("S", _without_report(6, "rejected")),
    "S: a lease that nobody judged": ("S", _without_report(5, "crashed")),
    "S: a commit point of another owner": (
        "S",
        replace(
            GOOD,
            changes=[
                replace(one, new_owner="another") if one.new_state is M else one for one in GOOD.changes
            ],
        ),
    ),
    "S: a dot without a commit point": (
        "S",
        replace(GOOD, reports=[*GOOD.reports, _report(6, "uncertain", 14.0)]),
    ),
    "S: a dot of the first attempt, after the operator had its mail sent again": (
        "S",
        _resent_and_then_the_first_dot(12.0),
    ),
    "S: a dot before the commit point": ("S", _mails(_mail(1, at=11.2), without=1)),
    "S: a dot after it was given away": (
        "S",
        _mails(_mail(2, at=11.7), _mail(2, TWO), without=2),
    ),
    "S: two dots for one commit point": ("S", _mails(_mail(3, at=12.6))),
    "S: a dot by way of the other server": ("S", _mails(_mail(3, TWO), without=3)),
    "S: a dot that its server held back, and gave away long after it was healed": (
        "S",
        replace(
            _resent_and_then_the_first_dot(17.0),
            faults=[*GOOD.faults, Fault(kind="held", target=ONE, began_at=10.4, healed_at=11.2)],
        ),
    ),
    "S: a dot that another server held back": (
        "S",
        replace(
            _resent_and_then_the_first_dot(12.0),
            faults=[*GOOD.faults, Fault(kind="held", target=TWO, began_at=10.4, healed_at=11.9)],
        ),
    ),
    "S: a way that does not begin at the beginning": (
        "S",
        replace(GOOD, changes=[one for one in GOOD.changes if (one.delivery_id, one.old_state) != (6, P)]),
    ),
    "S: a first claim under a later fence": (
        "S",
        _chain(6, Chain(6, fence=1).claimed(12).to(State.FAILED, 13.0)),
    ),
    "S: cancelled by no change": ("S", _all_became(State.CANCELLED, by_a_change=False)),
    "S: a change behind the ledger's back": ("S", _row(1, fence=2)),
    "S: a step that is missing": (
        "S",
        replace(GOOD, changes=[one for one in GOOD.changes if (one.delivery_id, one.new_state) != (1, M)]),
    ),
}

SAYS = {
    "C: finished with somebody alive": "is finished",
    "C: pending without a time": "nothing wakes it",
    "C: queued without a time": "nothing wakes it",
    "C: pending for a thousand years": "nothing wakes it",
    "C: claimed without a lease": "nothing wakes it",
    "C: claimed for longer than any lease": "nothing wakes it",
    "U: long after the only fault": "no fault was near",
    "U: by a fault that leaves nobody so": "no fault was near",
    "U: more near a fault than it explains, and it is another one that explains more": "near faults",
    "R: cancelled before its campaign was": "its campaign was not",
    "R: cancelled, and no campaign was": "its campaign was not",
    "R: suppressed, and nobody is on the list": "not on the list",
    "R: added as suppressed, and nobody is on the list": "not on the list",
    "R: claimed and accepted long after it came on the list": "fence 1 claimed it",
    "R: claimed before it came on the list, and again long after": "fence 2 claimed it",
    "R: claimed and refused long after it came on the list": "fence 1 claimed it",
    "S: a dot of the first attempt, after the operator had its mail sent again": "nobody might give",
    "S: a dot before the commit point": "nobody might give",
    "S: a dot after it was given away": "nobody might give",
    "S: two dots for one commit point": "nobody might give",
    "S: a dot by way of the other server": "nobody might give",
    "S: a dot that its server held back, and gave away long after it was healed": "nobody might give",
    "S: a dot that another server held back": "nobody might give",
    "S: a way that does not begin at the beginning": "does not follow",
    "S: a first claim under a later fence": "does not follow",
    "S: cancelled by no change": "nothing made it so",
    "S: a step that is missing": "does not follow",
}
"""What shows more than one violation of its property must show this one."""


def test_a_history_in_which_all_went_well_has_no_violation() -> None:
    assert judge(GOOD) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_rejected(name: str) -> None:
    wanted, history = BAD[name]
    found = judge(history)
    says = SAYS.get(name, "")
    assert any(one.property == wanted and says in one.what for one in found), found


@pytest.mark.parametrize("phase", ["dot", None], ids=["its own attempt's", "the sweep's"])
def test_a_resend_that_the_policy_asks_for_is_no_duplicate(phase: str | None) -> None:
    doubt = _report(1, "uncertain", 11.0, code=None, phase=phase)
    assert judge(_resent_by_policy(doubt, mails=[_mail(1, at=10.5), _mail(1)])) == []


def test_who_was_resent_by_the_policy_and_is_refused_then_may_have_failed() -> None:
    chain = Chain(6).committed(10).to(P, 11.0).committed(12).to(State.FAILED, 13.0)
    reports = [_report(6, "uncertain", 11.0, code=None), _report(6, "rejected", 13.0, fence=2)]
    history = _failed_and_retried(chain, State.FAILED, *reports, mails=[_mail(6, at=10.5)])
    assert judge(_resending(history)) == []
    assert {one.property for one in judge(history)} == {"F", "H"}


def test_as_many_may_be_uncertain_as_the_faults_near_explain() -> None:
    both = Fault(kind="kill", began_at=10.0, healed_at=11.0, may_leave_uncertain=2)
    late = Fault(kind="kill", began_at=19.0, healed_at=20.0, may_leave_uncertain=1)
    assert "U" not in {one.property for one in judge(_one_more_is_uncertain(both))}
    assert "U" not in {one.property for one in judge(_one_more_is_uncertain(late, *GOOD.faults))}


def test_a_dot_that_came_in_time_is_no_stale_one_whenever_its_250_comes() -> None:
    assert judge(_resent_and_then_the_first_dot(10.5)) == []


def test_a_dot_that_its_server_held_back_was_written_in_time() -> None:
    held = Fault(kind="held", target=ONE, began_at=10.4, healed_at=11.9)
    assert judge(replace(_resent_and_then_the_first_dot(12.0), faults=[*GOOD.faults, held])) == []


def test_who_is_claimed_and_has_a_lease_is_woken_by_its_end() -> None:
    claimed = _row(7, state=C, lease_until=40.0)
    assert not any("nothing wakes it" in one.what for one in judge(claimed))


def test_what_a_paused_campaign_holds_is_not_late() -> None:
    history = _row(7, state=P, next_attempt_at=1.0)
    paused = [replace(history.campaigns[0], status=Status.PAUSED), *history.campaigns[1:]]
    assert "L" not in {violation.property for violation in judge(replace(history, campaigns=paused))}


@pytest.mark.parametrize("outcome", ["rejected", "policy", "policy-message", "policy-server-domain"])
@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "body", "dot"])
def test_a_refusal_is_reason_enough_to_fail(outcome: str, phase: str) -> None:
    history = _failed(outcome, code=550, phase=phase)
    if phase == "dot":
        history = replace(_chain(6, Chain(6).committed(12).to(State.FAILED, 13.0)), reports=history.reports)
    assert judge(history) == []


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        ("rejected", "mail render: the field 'name' is missing"),
        ("policy-message", "mail size: the message has 9 octets, the server takes 8"),
        ("policy-message", "mail utf8: the server does not support SMTPUTF8"),
    ],
)
def test_so_is_a_letter_that_is_not_fit_to_be_sent(outcome: str, reply: str) -> None:
    assert judge(_failed(outcome, phase="mail", code=None, reply=reply)) == []


def test_who_was_deferred_for_long_enough_may_fail() -> None:
    assert judge(replace(_tried_twice("deferred"), give_up_after_seconds=4.0)) == []


@pytest.mark.parametrize(("outcome", "code"), [("unreachable", 451), ("full", 452)])
def test_so_may_who_was_answered_with_a_fault_by_a_server_that_took_others(outcome: str, code: int) -> None:
    answered = _tried_twice(outcome, server=TWO, code=code)
    assert judge(replace(answered, give_up_after_seconds=4.0)) == []


def test_who_cost_too_many_workers_may_fail() -> None:
    history = replace(_failed("crashed", phase=None), max_crashes=1)
    assert judge(history) == []


@pytest.mark.parametrize("since", [12.15, 12.35, 12.6], ids=["claimed", "at the dot", "accepted"])
def test_what_an_attempt_holds_goes_on_when_its_address_comes_on_the_list(since: float) -> None:
    assert judge(_listed(1, since)) == []


def test_a_claim_does_not_see_what_comes_on_the_list_just_then() -> None:
    assert judge(_listed(1, 11.5)) == []


def test_who_was_asked_to_wait_for_long_may_wait_so_long() -> None:
    waiting = {"state": P, "next_attempt_at": 20.0 + 80_000, "deferrals": 1}
    short = replace(_row(7, **waiting), longest_wait_seconds=1.0)
    assert any("nothing wakes it" in one.what for one in judge(short))
    told = replace(_row(7, **waiting, reply="450 4.7.1 try again in 20 hours"), longest_wait_seconds=1.0)
    assert not any("nothing wakes it" in one.what for one in judge(told))


def test_a_commit_point_before_a_pause_and_one_after_it_are_none_within_it() -> None:
    assert judge(_stood_still(Status.PAUSED, 103, 200)) == []


def test_the_story_of_a_delivery_is_told_in_order() -> None:
    story = GOOD.story(2).splitlines()
    assert len(story) == len(REROUTED.changes) + 3
    assert [float(line.split()[0]) for line in story] == sorted(float(line.split()[0]) for line in story)


def test_the_history_of_a_ledger_is_collected_as_it_was(ledger: Any) -> None:
    watch(ledger.database)
    watch(ledger.database)
    crowd = Crowd(ledger, 3)
    faults = FaultLog()
    with faults.injected("silence", may_leave_uncertain=1):
        sent, doubtful, crashed = crowd.committing()
    at_dot = time.time()
    crowd.report(sent, State.SENT)
    crowd.report(doubtful, State.UNCERTAIN, outcome="uncertain", code=None)
    crowd.report(crashed, State.PENDING, outcome="unreachable", phase="body", code=None, from_committing=True)
    token = ledger.campaign(crowd.name).token
    mail = replace(_mail(sent.delivery_id), at=at_dot, message_id=f"<{token}.{sent.delivery_id}@example.com>")
    history = collect(ledger.database, [mail], faults.faults, emails={crowd.name: []})
    assert [change.new_state for change in history.changes_of[sent.delivery_id]] == [Q, C, M, State.SENT]
    assert [change.new_status for change in history.statuses_of[crowd.name]] == [Status.RUNNING]
    assert history.statuses_of[crowd.name][0].at is not None
    found = judge(replace(history, campaigns=[replace(history.campaigns[0], emails=None)]))
    assert [(one.property, one.delivery_id) for one in found] == [("L", crashed.delivery_id)]
    assert [fault.healed_at is not None for fault in history.faults] == [True]
