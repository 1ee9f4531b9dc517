"""A fault explains what is uncertain only where and while it was there."""

from dataclasses import replace

from campaigns.states import State
from tests.faults.checker import judge
from tests.faults.history import Change, DeliverySeen, History
from tests.soak.doubts import Injected, with_faults

SERVER = Injected(kind="kill", target="primary", began_at=100.0, healed_at=105.0, server="primary")
WORKER = Injected(kind="kill", target="worker-1", began_at=100.0, healed_at=105.0, pids=(4711,))


def _change(seq: int, old: State, new: State, at: float, owner: str | None) -> Change:
    return Change(
        seq=seq,
        delivery_id=1,
        old_state=old,
        new_state=new,
        old_fence=1,
        new_fence=1,
        old_server="primary",
        new_server="primary",
        old_owner="host-4711-ab",
        new_owner=owner,
        at=at,
    )


def _history(committed_at: float, uncertain_at: float) -> History:
    delivery = DeliverySeen(
        id=1, campaign="spring", email="r@example.com", state=State.UNCERTAIN, server="primary", fence=1
    )
    changes = [
        _change(1, State.CLAIMED, State.COMMITTING, committed_at, "host-4711-ab"),
        _change(2, State.COMMITTING, State.UNCERTAIN, uncertain_at, None),
    ]
    return History(campaigns=[], deliveries=[delivery], changes=changes, reports=[], accepted=[])


def _is_explained(history: History, *injected: Injected) -> bool:
    return not [one for one in judge(with_faults(history, injected)) if one.property == "U"]


def test_without_a_fault_nothing_may_be_uncertain() -> None:
    assert not _is_explained(_history(99.0, 110.0))


def test_a_mail_at_its_dot_when_its_server_or_its_worker_failed_is_explained() -> None:
    assert _is_explained(_history(99.0, 110.0), SERVER)
    assert _is_explained(_history(103.0, 110.0), SERVER)
    assert _is_explained(_history(99.0, 110.0), WORKER)


def test_a_fault_that_was_over_before_or_came_after_explains_nothing() -> None:
    assert not _is_explained(_history(107.0, 110.0), SERVER, WORKER)
    assert not _is_explained(_history(80.0, 90.0), SERVER, WORKER)


def test_a_late_reply_may_be_lost_after_the_sweep_has_been_there() -> None:
    assert _is_explained(_history(90.0, 97.0), WORKER)


def test_what_is_found_uncertain_late_may_have_been_lost_until_then() -> None:
    assert _is_explained(_history(82.0, 106.0), WORKER)
    assert not _is_explained(_history(82.0, 98.0), WORKER)


def test_another_server_s_fault_and_another_process_s_death_explain_nothing() -> None:
    history = _history(99.0, 110.0)
    assert not _is_explained(history, replace(SERVER, server="secondary"), replace(WORKER, pids=(47, 11)))
    assert not _is_explained(history, replace(SERVER, server=None))


def test_one_fault_is_charged_with_each_doubt_once() -> None:
    faults = with_faults(_history(99.0, 110.0), [SERVER, WORKER]).faults
    assert [fault.may_leave_uncertain for fault in faults] == [1, 0]
