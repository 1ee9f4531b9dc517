"""Addresses come on the suppression list while their mail is on its way, and servers and workers die."""

import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection

from sqlalchemy import text

from campaigns.states import ALIVE, State
from tests.acceptance.place import addresses
from tests.faults.history import DeliverySeen, History
from tests.faults.trial import QUICK, QUICK_BREAKER, Trial, Trials, patiently

CONNECTIONS = 10
EMAILS = [email for two in zip(addresses(60), addresses(60, "greylist"), strict=True) for email in two]
PATIENT = QUICK.replace("command_seconds = 3", "command_seconds = 30")
PATIENT_BREAKER = QUICK_BREAKER.replace("slow_seconds = 2", "slow_seconds = 30")
"""A server that is suspended for a moment is not given up."""
SOON_AGAIN = "visibility:2"
"""What a killed worker had taken from the broker is not waited for."""
WAITED = ("queued", "deferred", "rerouted")
TRIED = ("held, then deferred", "held, then unreachable", "held, then crashed")


def _count(trial: Trial, state: State, server: str) -> int:
    return sum(one.server == server for one in trial.ledger.deliveries("spring", state))


def _deferred(trial: Trial) -> int:
    return sum(one.deferrals > 0 for one in trial.ledger.deliveries("spring", State.PENDING))


def _is_held(trial: Trial, *servers: str) -> bool:
    """Whether enough of both kinds is claimed for each of these servers that half of it is some of each."""
    held = Counter(
        (one.server, one.email.partition("+")[0]) for one in trial.ledger.deliveries("spring", State.CLAIMED)
    )
    return all(held[server, kind] >= 2 for server in servers for kind in ("r", "greylist"))


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
        return outcomes[0]
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
        trial.primary.suspend()
        trial.secondary.suspend()
        patiently(lambda: _is_held(trial, "primary", "secondary"), what=trial.logs)
        listed = _suppress_half(trial)
        trial.primary.kill()
        trial.secondary.resume()
        patiently(lambda: not _holds(trial, listed), what=trial.logs)
        patiently(lambda: _count(trial, State.QUEUED, "primary") == 0, what=trial.logs)
        trial.secondary.suspend()
        patiently(lambda: len(_held_by(trial, doomed)) >= 2, what=trial.logs)
        listed |= _suppress_half(trial, held=_held_by(trial, doomed))
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
    for what in (*WAITED, *TRIED):
        assert set(met[what]) <= {State.SUPPRESSED}, (what, met[what])
    assert all(met[what] for what in WAITED), met
    assert sum(bool(met[what]) for what in TRIED) >= 2, (
        f"a reply may end what was to be listed, not all: {met}"
    )
    assert State.SENT in met["held, then sent"], met
