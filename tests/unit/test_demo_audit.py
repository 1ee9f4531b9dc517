"""The demo's audit must be able to fail: a broken promise shows."""

from campaigns.demo.audit import Accepted, Audit, LedgerRow, Summary


def accepted(*recipients: str, at: float = 10.0) -> list[Accepted]:
    return [Accepted(at=at + index, recipient=recipient) for index, recipient in enumerate(recipients)]


def row(email: str, state: str = "sent", *, left: str | None = None) -> LedgerRow:
    return LedgerRow(email=email, state=state, rerouted_from=frozenset([left] if left else []))


def audit(
    rows: list[LedgerRow], primary: list[Accepted], secondary: list[Accepted], recipients: int | None = None
) -> Summary:
    return Audit(
        recipients=len(rows) if recipients is None else recipients,
        rows=rows,
        records={"primary": primary, "secondary": secondary},
        victim="primary",
        killed_at=10.0,
    ).summary()


def test_everybody_served_once_keeps_the_promise():
    summary = audit([row("a"), row("b")], accepted("a"), accepted("b"))
    assert summary.kept_the_promise
    assert (summary.sent, summary.accepted) == (2, {"primary": 1, "secondary": 1})


def test_a_second_mail_is_a_duplicate_even_on_another_server():
    summary = audit([row("a")], accepted("a"), accepted("a"))
    assert summary.duplicates == 1
    assert not summary.kept_the_promise


def test_who_never_came_to_an_end_is_lost():
    summary = audit([row("a"), row("b", "queued")], accepted("a"), [])
    assert summary.lost == 1
    assert not summary.kept_the_promise


def test_who_never_came_into_the_ledger_is_lost():
    assert audit([row("a")], accepted("a"), [], recipients=2).lost == 1


def test_a_sent_that_no_server_accepted_breaks_the_promise():
    summary = audit([row("a")], [], [])
    assert summary.sent_but_not_accepted == 1
    assert not summary.kept_the_promise


def test_an_uncertain_mail_is_neither_lost_nor_hidden():
    summary = audit([row("a", "uncertain"), row("b", "uncertain")], accepted("a"), [])
    assert summary.kept_the_promise
    assert summary.uncertain_accepted_by == {"a": ["primary"], "b": []}


def test_failover_ends_with_the_first_mail_that_left_the_victim():
    secondary = [
        Accepted(at=9.0, recipient="early"),
        Accepted(at=10.5, recipient="own"),
        Accepted(at=12.25, recipient="moved"),
        Accepted(at=13.0, recipient="later"),
    ]
    rows = [row("early"), row("own"), row("moved", left="primary"), row("later", left="primary")]
    assert audit(rows, [], secondary).failover_seconds == 2.25


def test_without_a_rerouted_mail_there_was_no_failover():
    assert audit([row("a")], accepted("a"), []).failover_seconds is None


def test_the_rate_is_that_of_the_records():
    assert audit([row("a"), row("b"), row("c")], accepted("a", "b", "c"), []).mails_per_second == 1.5
