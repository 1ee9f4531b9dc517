"""Messages that mean nothing, templates that never end, merge fields of 50 MB: the rest goes on."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaigns.ledger import NewRecipient
from campaigns.publishing import DELIVER_TASK, envelope
from campaigns.states import State, Status
from tests.acceptance.place import addresses
from tests.faults.trial import Trial, Trials, patiently

ROOT = Path(__file__).parents[2]
PRIMARY = "smtp.primary"
RIGHT = {"campaign": "campaign-0", "delivery": 1, "server": "primary"}

NOBODYS = (10**9, 2**63 - 1, 2**63, 10**30, -1, -(2**63), -(10**30), 0)
"""Numbers of deliveries that do not exist, some of which no column of the ledger could hold."""


_numbers = itertools.count(1)


def _task(task: str = DELIVER_TASK, **arguments: Any) -> str:
    return envelope(task, PRIMARY, 0)(f"poison.{next(_numbers)}", arguments)


def _changed(**fields: Any) -> str:
    return json.dumps({**json.loads(_task(**RIGHT)), **fields})


def _with_header(**fields: Any) -> str:
    message = json.loads(_task(**RIGHT))
    return json.dumps({**message, "headers": {**message["headers"], **fields}})


POISON = [
    "",
    "no JSON at all",
    "{",
    "[]",
    "null",
    "7",
    '"text"',
    "{}",
    '{"body": 7}',
    "\x00\x01\x02",
    "[" * 100_000,
    _changed(body="no base64 ä"),
    _changed(body=b64encode(b"no json").decode()),
    _changed(body=b64encode(b"[[], {}]").decode()),
    _changed(body=b64encode(b"{}").decode()),
    _changed(body=b64encode(b"[1, 2, 3]").decode()),
    _changed(**{"content-type": "application/x-python-serialize"}),
    _changed(**{"content-encoding": "no-such-encoding"}),
    _changed(properties={}),
    _changed(properties=None),
    _changed(headers={}),
    _changed(headers=None),
    _with_header(task=None),
    _with_header(id=None),
    _with_header(eta="tomorrow"),
    _with_header(eta="2999-01-01T00:00:00+00:00"),
    _with_header(retries="many"),
    _task("campaigns.no_such_task"),
    _task("os.system", command="true"),
    _task(campaign="no such campaign", delivery=1, server="primary"),
    *(_task(campaign="campaign-0", delivery=number, server="primary") for number in NOBODYS),
    _task(campaign="campaign-0", delivery="1; DROP TABLE delivery", server="primary"),
    _task(campaign="campaign-0", delivery=None, server="primary"),
    _task(campaign="campaign-0", delivery=1, server="no-such-server"),
    _task(campaign="campaign-0", delivery=1, server=None),
    _task(campaign="campaign-0", delivery=1, server="secondary"),
    _task(campaign=None, delivery=1, server="primary"),
    _task(campaign={"a": []}, delivery=[1], server="primary"),
    _task(campaign="x" * 100_000, delivery=1, server="primary"),
    _task(campaign="\ud800\u0000", delivery=1, server="primary"),
    _task(delivery=1),
    _task(),
    _task(**RIGHT, surplus=1),
]


def _claims(trial: Trial) -> Iterator[tuple[object, str]]:
    """Each claim that a worker of the oddity `claims` has asked the ledger for, and what it was answered."""
    for file in trial.directory.glob("claims-*"):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                number, answer = json.loads(line)
                yield number, answer


def test_messages_that_mean_nothing_harm_nobody(either_trial: Trial) -> None:
    trial = either_trial
    trial.odd_worker("primary", oddities="claims")
    trial.start_worker("secondary")
    trial.wait_for_workers(2)
    with trial.broker_client() as client:
        for number in range(3):
            trial.send(f"campaign-{number}", addresses(60, f"r{number}"))
            for message in POISON:
                client.lpush(PRIMARY, message.encode("utf-8", "surrogatepass"))
        trial.verdict()
        patiently(lambda: client.llen(PRIMARY) == 0, what=trial.logs)
    patiently(lambda: set(NOBODYS) <= {number for number, _ in _claims(trial)}, what=trial.logs)
    answers = {answer for number, answer in _claims(trial) if number in NOBODYS}
    assert "Claimed" not in answers, "the ledger was asked for those who do not exist, and had none"
    assert all(worker.poll() is None for worker in trial.workers), "nobody died of it"
    assert [trial.states(f"campaign-{number}") for number in range(3)] == [{State.SENT: 60}] * 3


def _produce(trial: Trial) -> None:
    """Before any worker is there."""
    command = [sys.executable, "-m", "tests.faults.producing_child", str(trial.config), "never"]
    subprocess.run([*command, str(trial.directory)], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _queued_for_the_primary(trial: Trial, name: str) -> list[int]:
    return [
        one.id
        for one in trial.ledger.deliveries(name)
        if one.state is State.QUEUED and one.server == "primary"
    ]


def test_a_message_with_another_campaign_s_name_gives_nobody_the_wrong_letter(either_trial: Trial) -> None:
    trial = either_trial
    names = ("spring", "summer")
    for name in names:
        trial.send(name, addresses(60, name))
    _produce(trial)
    strangers = _queued_for_the_primary(trial, "summer")
    assert strangers, "these are to be had"
    with trial.broker_client() as client:
        for number in strangers:
            wrong = _task(campaign="spring", delivery=number, server="primary")
            client.rpush(PRIMARY, wrong)  # ahead of the right one
    trial.start_workers()
    trial.verdict()
    tokens = {trial.ledger.campaign(name).token: name for name in names}
    campaigns = {f"{one.id}": name for name in names for one in trial.ledger.deliveries(name)}
    got = [mail.message_id.strip("<").partition("@")[0].split(".") for mail in trial.accepted()]
    assert [number for token, number in got if tokens[token] != campaigns[number]] == []


def test_a_template_that_never_ends_fails_its_own_mail_alone(new_trial: Trials) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}"
    trial = new_trial(body="Dear {{ name }},\n{% if name == 'Bob' %}" + endless + "{% endif %}\n")
    trial.start_workers()
    emails = addresses(60)
    trial.campaign("spring", emails)
    bobs = [NewRecipient(email=f"bob+{n}@b.example", dedupe_key=f"bob{n}", domain="b.example",
                         fields={"name": "Bob"}) for n in range(5)]  # fmt: skip
    trial.ledger.add_recipients(trial.ledger.campaign("spring").id, bobs)
    trial.ledger.send("spring")
    trial.verdict(emails={"spring": [*emails, *(bob.email for bob in bobs)]})
    assert trial.states("spring") == {State.SENT: 60, State.FAILED: 5}
    assert trial.breaker_events() == [], "no server is to blame"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_merge_field_of_fifty_megabytes_fails_or_is_sent_and_holds_up_nobody(trial: Trial) -> None:
    emails = addresses(60)
    trial.campaign("spring", emails)
    giant = NewRecipient(
        email="giant@b.example",
        dedupe_key="giant",
        domain="b.example",
        fields={"name": "x" * 50_000_000},
    )
    trial.ledger.add_recipients(trial.ledger.campaign("spring").id, [giant])
    trial.start_workers()
    trial.ledger.send("spring")
    trial.wait_until_finished("spring")
    states = {delivery.email: delivery.state for delivery in trial.ledger.deliveries("spring")}
    assert states.pop("giant@b.example") is State.FAILED
    assert set(states.values()) == {State.SENT}
    trial.verdict(emails={"spring": [*emails, giant.email]})
    assert all(worker.poll() is None for worker in trial.workers)
    assert trial.counts("spring").status is Status.FINISHED
