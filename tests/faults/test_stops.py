"""A campaign is paused or cancelled while its mail is on its way: no commit point is passed after that."""

import time

from campaigns.states import ALIVE, State
from tests.acceptance.place import Place, addresses
from tests.faults.trial import Trial, patiently

SECONDS_TO_DATA = 1.0
"""So long a mail is claimed, and has not come to its commit point."""


def _wait_for_claims(trial: Trial, name: str) -> None:
    patiently(lambda: trial.count(name, State.CLAIMED) >= 5, what=trial.logs)


def test_no_commit_point_is_passed_while_a_campaign_stands_still(either_trial: Place) -> None:
    trial = either_trial
    assert isinstance(trial, Trial)
    for server in (trial.primary, trial.secondary):
        server.set("data", "delay", seconds=SECONDS_TO_DATA)
    trial.start_workers()
    emails = addresses(200)
    trial.send("spring", emails)
    for _ in range(3):
        _wait_for_claims(trial, "spring")
        trial.ledger.pause("spring")
        time.sleep(2 * SECONDS_TO_DATA)
        trial.ledger.resume("spring")
    trial.send("summer", addresses(100, "s"))
    _wait_for_claims(trial, "summer")
    trial.ledger.cancel("summer")
    for server in (trial.primary, trial.secondary):
        server.clear()
    patiently(lambda: not ALIVE & set(trial.states("summer")), what=trial.logs)
    history = trial.verdict("spring")
    assert trial.states("spring") == {State.SENT: len(emails)}
    assert trial.count("summer", State.CANCELLED) > 0
    stopped = {report.delivery_id for report in history.reports if report.outcome == "stopped"}
    paused = {delivery.id for delivery in history.deliveries if delivery.campaign == "spring"}
    assert stopped & paused, "somebody came to the commit point while it was paused"
