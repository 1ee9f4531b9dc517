"""Addresses come on the suppression list while their mail is on its way, and servers and workers die."""

import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Collection

from sqlalchemy import text

from campaigns.ledger import DeliveryRecord
from campaigns.states import ALIVE, State
from tests.acceptance.place import addresses
from tests.faults.history import DeliverySeen, History
from tests.faults.trial import QUICK, QUICK_BREAKER, Trial, Trials, patiently

CONNECTIONS = 10
EMAILS = [email for two in zip(addresses(60), addresses(60, "greylist"), strict=True) for email in two]
PATIENT = (
    QUICK.replace("connect_seconds = 2", "connect_seconds = 30")
    .replace("command_seconds = 3", "command_seconds = 30")
    .replace('"1s"', '"5s"')
)
PATIENT_BREAKER = QUICK_BREAKER.replace("slow_seconds = 2", "slow_seconds = 30")
"""A server that is suspended for a moment is not given up."""
SOON_AGAIN = "visibility:2"
"""What a killed worker had taken from the broker is not waited for."""
AT_REST_SECONDS = 1.0
WAITED = ("queued", "deferred", "rerouted")
TRIED = ("held, then deferred", "held, then unreachable", "held, then crashed")
MAY_HAVE_IT = {"held, then sent", "held, then uncertain"}


def _count(trial: Trial, state: State, server: str) -> int:
    return sum(one.server == server for one in trial.ledger.deliveries("spring", state))


def _deferred(trial: Trial) -> int:
    return sum(one.deferrals > 0 for one in trial.ledger.deliveries("spring", State.PENDING))


def _held(trial: Trial) -> set[tuple[str | None, str]]:
    """Server and address of what is claimed."""
    return {(one.server, one.email) for one in _claimed(trial)}


def _claimed(trial: Trial) -> list[DeliveryRecord]:
    return list(trial.ledger.deliveries("spring", State.CLAIMED))


def _held_at_rest(trial: Trial) -> set[tuple[str | None, str]]:
    """What is claimed once all replies of the suspended servers are recorded, and no more can be claimed."""

    def is_still() -> bool:
        before = _held(trial)
        time.sleep(AT_REST_SECONDS)
        return _held(trial) == before

    patiently(is_still, what=trial.logs)
    return _held(trial)


def _suppress_half_of_what_both_hold(trial: Trial) -> set[str]:
    """Suspends both servers and suppresses half of all mail, so that each holds some of either kind of it.

    The ledger says so afterwards: what is claimed then was when its address came on the list.
    """
    servers = (trial.primary, trial.secondary)
    wanted = {(server.name, kind) for server in servers for kind in ("r", "greylist")}
    listed: set[str] = set()

    def is_so() -> bool:
        for server in servers:
            server.suspend()
        held = Counter((name, _kind(email)) for name, email in _held_at_rest(trial))
        if all(held[one] >= 2 for one in wanted) and _deferred(trial) >= CONNECTIONS // 2:
            listed.update(_suppress_half(trial))
            if {(name, _kind(email)) for name, email in _held(trial) if email in listed} >= wanted:
                return True
        for server in servers:
            server.resume()
        return False

    patiently(is_so, what=trial.logs)
    return listed


def _kind(email: str) -> str:
    return email.partition("+")[0]


def _suppress_half_of_what_one_worker_holds(trial: Trial, worker: subprocess.Popen[bytes]) -> set[str]:
    """Suspends the secondary and suppresses half of all mail again, some of it in this worker's hands."""
    listed: set[str] = set()

    def is_so() -> bool:
        trial.secondary.suspend()
        _held_at_rest(trial)
        if len(_held_by(trial, worker)) >= 2:
            listed.update(_suppress_half(trial, held=_held_by(trial, worker)))
            if listed & {one.email for one in _claimed(trial) if one.id in _held_by(trial, worker)}:
                return True
        trial.secondary.resume()
        return False

    patiently(is_so, what=trial.logs)
    return listed


def _held_by(trial: Trial, worker: subprocess.Popen[bytes]) -> set[int]:
    sql = text("SELECT id FROM delivery WHERE state = 'claimed' AND owner LIKE :owner")
    with trial.database.read() as connection:
        return set(connection.execute(sql, {"owner": f"%-{worker.pid}-%"}).scalars())


def _holds(trial: Trial, emails: set[str]) -> bool:
    return any(one.email in emails for one in trial.ledger.deliveries("spring", State.CLAIMED))


def _suppress_half(trial: Trial, *, held: Collection[int] = ()) -> set[str]:
    """Every second one of each kind of those who are alive, and of those `held`; returns whom."""
    alive = [one for one in trial.ledger.deliveries("spring") if one.state in ALIVE]
    alive.sort(key=lambda one: (one.state, one.server or "", one.id in held, one.email))
    emails = [one.email for one in alive[::2]]
    trial.ledger.suppress([(email, email, None) for email in emails])
    return set(emails)


def _what_it_met(history: History, delivery: DeliverySeen) -> str:
    """Where the mail was when its address came on the list; of what was held, how that attempt ended.

    A claim that crosses the entry, and does not see it yet, holds the mail; one that comes later is a
    violation of R.
    """
    since = history.suppressions[delivery.dedupe_key]
    changes = history.changes_of[delivery.id]
    before = [change for change in changes if change.at <= since]
    if changes[len(before) :] and changes[len(before)].new_state is State.CLAIMED:
        before.append(changes[len(before)])
    if not before:
        return "new"
    last = before[-1]
    outcomes = [one.outcome for one in history.reports_of.get(delivery.id, []) if one.fence == last.new_fence]
    if last.new_state is State.PENDING:
        return outcomes[0] if outcomes else "put back, never claimed"
    if last.new_state is State.QUEUED:
        by_the_sweep = changes[len(before)].old_server != last.new_server
        return "rerouted" if by_the_sweep or last.old_state is State.CLAIMED else "queued"
    return f"held, then {outcomes[0]}"


def test_who_comes_on_the_list_gets_no_mail_but_what_an_attempt_held(
    new_trial: Trials, database_url: str
) -> None:
    trial = new_trial(database_url, connections=CONNECTIONS, delivery=PATIENT, tables=PATIENT_BREAKER)
    for server in (trial.primary, trial.secondary):
        server.set("mail", "delay", seconds=1.0)
    trial.odd_worker("primary", "secondary", oddities=SOON_AGAIN)
    doomed = trial.odd_worker("secondary", oddities=SOON_AGAIN)
    trial.wait_for_workers(2)
    trial.send("spring", EMAILS)
    patiently(lambda: _deferred(trial) >= CONNECTIONS // 2, what=trial.logs)
    with trial.outage("killed", "primary", may_leave_uncertain=CONNECTIONS):
        listed = _suppress_half_of_what_both_hold(trial)
        trial.primary.kill()
        trial.secondary.resume()
        patiently(lambda: not _holds(trial, listed), what=trial.logs)
        patiently(lambda: _count(trial, State.QUEUED, "primary") == 0, what=trial.logs)
        listed |= _suppress_half_of_what_one_worker_holds(trial, doomed)
        trial.kill_worker(doomed)
        trial.secondary.resume()
        trial.secondary.clear()
        trial.primary.start()
    history = trial.verdict()
    met: dict[str, Counter[State]] = defaultdict(Counter)
    for delivery in history.deliveries:
        if delivery.email in listed:
            met[_what_it_met(history, delivery)][delivery.state] += 1
        else:
            assert delivery.state in {State.SENT, State.UNCERTAIN}, history.story(delivery.id)
    assert set(met) >= {*WAITED, *TRIED}, met
    for what in set(met) - MAY_HAVE_IT:
        assert set(met[what]) == {State.SUPPRESSED}, (what, met)
    assert State.SENT in met["held, then sent"], met
