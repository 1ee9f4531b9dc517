"""A worker dies, or sleeps through its leases, at each named point of an attempt."""

import signal

import pytest

from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.history import History
from tests.faults.odd_worker import POINTS
from tests.faults.trial import PATIENCE_SECONDS, QUICK, Trial, Trials, patiently

FAST = ("commit point unheard", "dot handed over")
"""Those that `make test` runs, too."""
EMAILS = addresses(80)
NOT_TOGETHER = {"extensions": ["SIZE 52428800", "8BITMIME", "ENHANCEDSTATUSCODES", "SMTPUTF8"]}
"""Without PIPELINING each command waits for the reply to the one before."""
BEFORE_THE_DOT = POINTS[: POINTS.index("dot handed over")]
NEVER_COMMITTED = POINTS[: POINTS.index("commit point unheard")]


def _points() -> list[object]:
    return [pytest.param(point, marks=() if point in FAST else pytest.mark.slow) for point in POINTS]


def _one_at_a_time(trial: Trial) -> SmtpServerProcess:
    """The secondary is slow, or it takes so much over that the primary never comes to the point."""
    trial.primary.control(NOT_TOGETHER)
    trial.secondary.set("dot", "delay", seconds=0.3)
    return trial.primary


def _uncertain(history: History) -> set[int]:
    return {delivery.id for delivery in history.deliveries if delivery.state is State.UNCERTAIN}


def _taken_by_the_primary(history: History) -> set[int | None]:
    """Only the worker on trial serves the primary."""
    return {
        number
        for number, mails in history.accepted_of.items()
        if any(mail.server == "primary" for mail in mails)
    }


def _judge_the_dead(history: History, doomed: int, point: str) -> None:
    """What became of the very mail over which the worker was killed."""
    found = next(one for one in history.deliveries if one.id == doomed)
    if point in BEFORE_THE_DOT:
        assert doomed not in _taken_by_the_primary(history), history.story(doomed)
        wanted = (State.SENT, "secondary") if point in NEVER_COMMITTED else (State.UNCERTAIN, "primary")
        assert (found.state, found.server) == wanted, history.story(doomed)
    else:
        assert found.state in {State.SENT, State.UNCERTAIN}, history.story(doomed)


def _judge_the_sleeper(history: History, doomed: int, point: str) -> None:
    """`history` is that of its sleep."""
    reached = {change.new_state for change in history.changes_of.get(doomed, [])}
    if point in BEFORE_THE_DOT:
        assert doomed not in _taken_by_the_primary(history), history.story(doomed)
        assert (State.UNCERTAIN in reached) is (point not in NEVER_COMMITTED), history.story(doomed)


def _judge_the_woken(asleep: History, awake: History, doomed: int, point: str) -> None:
    """Asleep before its dot it gave the primary no mail; each since then needs a commit point of its own."""
    if point not in BEFORE_THE_DOT:
        return
    taken = sum(mail.server == "primary" for mail in awake.accepted_of.get(doomed, []))
    fences = _committed_for_the_primary(awake, doomed) - _committed_for_the_primary(asleep, doomed)
    assert taken <= len(fences), awake.story(doomed)
    if point not in NEVER_COMMITTED:
        outcomes = {report.outcome for report in awake.reports_of.get(doomed, [])}
        assert "stopped" in outcomes, f"it woke up before its dot\n{awake.story(doomed)}"


def _committed_for_the_primary(history: History, delivery_id: int) -> set[int]:
    """The fences."""
    return {
        change.new_fence
        for change in history.changes_of.get(delivery_id, [])
        if change.new_state is State.COMMITTING and change.new_server == "primary"
    }


def _is_explained_by_the_primary(trial: Trial, history: History) -> bool:
    """Whoever is uncertain was accepted, or is one of those whose DATA came and whose dot never did."""
    without_dot = _uncertain(history) - _taken_by_the_primary(history)
    return len(without_dot) <= trial.primary.stats().get("unfinished", 0)


@pytest.mark.parametrize("point", _points())
def test_a_worker_that_is_killed_loses_nobody_and_serves_nobody_twice(trial: Trial, point: str) -> None:
    _one_at_a_time(trial)
    doomed = trial.odd_worker("primary", oddities=f"kill:{point}:15")
    trial.start_worker("secondary")
    trial.wait_for_workers(2)
    trial.send("spring", EMAILS)
    trial.wait_for_death(doomed)
    at_dot = trial.at_its_dot(doomed)
    trial.faults.note(f"worker killed: {point}", may_leave_uncertain=at_dot)
    history = trial.verdict()
    assert len(_uncertain(history)) <= at_dot
    assert _is_explained_by_the_primary(trial, history)
    _judge_the_dead(history, trial.doomed_by(doomed), point)
    assert trial.count("spring", State.SENT) == len(EMAILS) - len(_uncertain(history))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after commit point", "dot handed over"])
def test_with_resend_nobody_waits_for_the_operator(new_trial: Trials, point: str) -> None:
    """Nor does whom a killed worker had at its dot; they may be served twice, and that was asked for."""
    trial = new_trial(delivery=QUICK + '\non_uncertain = "resend"')
    _one_at_a_time(trial)
    doomed = trial.odd_worker("primary", oddities=f"kill:{point}:15")
    trial.start_worker("secondary")
    trial.wait_for_workers(2)
    trial.send("spring", EMAILS)
    trial.wait_for_death(doomed)
    at_dot = trial.at_its_dot(doomed)
    assert at_dot >= 1, "the fault was met"
    trial.faults.note(f"worker killed: {point}", may_leave_uncertain=at_dot)
    history = trial.verdict()
    assert trial.states("spring") == {State.SENT: len(EMAILS)}
    served = sum(len(mails) for mails in history.accepted_of.values())
    assert len(EMAILS) <= served <= len(EMAILS) + at_dot


@pytest.mark.parametrize("point", _points())
def test_a_worker_that_sleeps_through_its_lease_changes_nothing_that_is_another_s(
    trial: Trial, point: str
) -> None:
    _one_at_a_time(trial)
    sleeper = trial.odd_worker("primary", oddities=f"stop:{point}:15")
    trial.start_worker("secondary")
    trial.wait_for_workers(2)
    trial.send("spring", EMAILS)
    trial.wait_for_sleep(sleeper)
    with trial.outage(f"worker stopped: {point}", may_leave_uncertain=trial.at_its_dot(sleeper)):
        patiently(
            lambda: trial.count("spring", State.SENT) + trial.count("spring", State.UNCERTAIN) == len(EMAILS),
            what=trial.logs,
        )
        doomed, asleep = trial.doomed_by(sleeper), trial.history()
        _judge_the_sleeper(asleep, doomed, point)
        sleeper.send_signal(signal.SIGCONT)
    patiently(lambda: trial.count("spring", State.UNCERTAIN) == 0, what=trial.logs)
    _judge_the_woken(asleep, trial.verdict(), doomed, point)
    assert trial.count("spring", State.SENT) == len(EMAILS), (
        "its own late replies resolved what was uncertain"
    )


@pytest.mark.slow
def test_workers_that_are_ended_warmly_under_load_leave_nothing_behind(new_trial: Trials) -> None:
    trial = new_trial()
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=0.1)
    trial.start_workers()
    trial.send("spring", addresses(1_500))
    for goal in (200, 500, 800):
        patiently(lambda goal=goal: trial.count("spring", State.SENT) >= goal, what=trial.logs)
        ended = next(worker for worker in trial.workers if worker.poll() is None)
        with trial.outage("worker ended warmly"):
            ended.terminate()
            assert ended.wait(PATIENCE_SECONDS) == 0
            assert trial.at_its_dot(ended) == 0
            trial.start_worker("primary", "secondary")
    trial.verdict()
    assert trial.count("spring", State.SENT) == 1_500
