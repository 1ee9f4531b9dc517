"""Mail servers that refuse, fall silent, babble, dawdle or die, at each phase; the other one takes over."""

import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import text

from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.states import State
from tests.acceptance.place import Place, addresses
from tests.faults.history import DeliverySeen, Expected
from tests.faults.proxy import BOTH, TO_CLIENT, TO_SERVER
from tests.faults.trial import QUICK, Trial, Trials, patiently

PHASES = ("greeting", "ehlo", "mail", "rcpt", "data", "body", "dot")
REFUSALS = ("451 4.3.0 not now", "554 5.3.0 not ever", "421 4.3.2 closing")
ODDITIES = ("drop", "stall", "garbage", "oversized", "cut", "drip", "inject")
IMPATIENT = QUICK + "\ndot_seconds = 2"
TIMES = 2
slow = pytest.mark.slow


@pytest.fixture
def impatient(new_trial: Trials) -> Trial:
    """An installation that waits two seconds for the reply to a dot."""
    return new_trial(delivery=IMPATIENT)


def _misbehave_until_it_is_met(trial: Trial, phase: str, action: str, **fields: Any) -> None:
    """Campaign after campaign, until the primary has been asked in that phase so often."""
    key = f"misbehaved.{phase}.{action}"
    before = trial.primary.stats().get(key, 0)
    uncertain = TIMES if phase in {"dot", "body"} else 0
    with trial.outage(f"{phase} {action}", "primary", may_leave_uncertain=uncertain):
        trial.primary.set(phase, action, times=TIMES, **fields)
        trial.primary.control({"disconnect": True})  # a connection that is kept asks for no greeting again
        for number in range(20):
            _forget_blocks(trial)
            name = f"{phase}-{number}"
            trial.send(name, addresses(20, f"{phase}{number}"))
            trial.wait_until_finished(name)
            if trial.primary.stats().get(key, 0) - before >= TIMES:
                break
        else:
            pytest.fail(f"the primary was never asked at {phase}\n{trial.logs()}")
        trial.primary.clear()


def _forget_blocks(trial: Trial) -> None:
    """A sender that was refused for good is not offered to that server again; here it is."""
    with trial.database.write() as connection:
        connection.execute(text("DELETE FROM block"))


def _totals(trial: Trial) -> dict[State, int]:
    with trial.database.read() as connection:
        found = connection.execute(text("SELECT state, count(*) AS n FROM delivery GROUP BY state"))
        return {State(row.state): row.n for row in found}


@slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reply", REFUSALS)
def test_a_refusal_in_any_phase_costs_no_more_than_what_it_says(impatient: Trial, reply: str) -> None:
    impatient.start_workers()
    for phase in PHASES:
        _misbehave_until_it_is_met(impatient, phase, "reply", reply=reply)
    impatient.verdict()
    totals = _totals(impatient)
    assert State.UNCERTAIN not in totals, "a well-formed refusal is definite, at the dot too"
    refused = TIMES * 3 if reply.startswith("554") else 0
    assert totals.get(State.FAILED, 0) <= refused, (
        "554 is the recipient's at RCPT, the mail's in body and dot"
    )


@slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("action", ODDITIES)
def test_a_server_that_is_odd_in_any_phase_leaves_doubt_at_its_dot_alone(
    impatient: Trial, action: str
) -> None:
    impatient.start_workers()
    for phase in PHASES:
        _misbehave_until_it_is_met(impatient, phase, action, seconds=1.0)
    impatient.verdict()
    totals = _totals(impatient)
    assert totals.get(State.UNCERTAIN, 0) <= 2 * TIMES, (
        "at the dot, and in a body that the kernel takes, dot and all, though the server reads none of it"
    )
    assert State.FAILED not in totals or action == "inject", totals


@pytest.mark.parametrize("action", ["accept-drop", "accept-stall"])
def test_a_mail_that_was_taken_without_a_word_is_uncertain_and_never_sent_again(
    impatient: Trial, action: str
) -> None:
    impatient.start_workers()
    _misbehave_until_it_is_met(impatient, "dot", action)
    history = impatient.verdict()
    doubtful = {one.id for one in history.deliveries if one.state is State.UNCERTAIN}
    assert len(doubtful) == TIMES
    assert all(len(history.accepted_of[one]) == 1 for one in doubtful), "they were taken, once"


LONG_LETTER = "Dear {{ name }},\n" + "a line of a long letter, which fills every buffer on its way\n" * 300
SMALL_BUFFERS = ("--receive-buffer", "4096")
"""Of a letter as long as that the dot is not on its way while the server does not read."""


@slow
@pytest.mark.parametrize("phase", ["body", "dot"])
def test_a_server_that_dies_with_mail_in_its_hands(new_trial: Trials, phase: str) -> None:
    trial = new_trial(server_options=SMALL_BUFFERS, body=LONG_LETTER)
    trial.start_workers()
    trial.primary.set(phase, "stall", after=200)
    emails = addresses(400)
    trial.send("spring", emails)
    patiently(lambda: _at(trial.primary, phase) >= 5, what=trial.logs)
    at_dot = _all_at_the_dot(trial) if phase == "dot" else 0
    with trial.outage("server killed", "primary", may_leave_uncertain=at_dot):
        assert _held(trial, "primary") >= 1, "the fault was met"
        trial.primary.kill()
        time.sleep(2)
        trial.primary.start()
    trial.verdict(expected=_long_letter_of(trial))
    assert trial.count("spring", State.UNCERTAIN) == at_dot
    assert trial.count("spring", State.SENT) == len(emails) - at_dot


def _at(server: SmtpServerProcess, phase: str, action: str = "stall") -> int:
    """How many mails this server does not go on with in this phase."""
    return server.stats().get(f"misbehaved.{phase}.{action}", 0)


def _held(trial: Trial, *servers: str, states: tuple[State, ...] = (State.CLAIMED, State.COMMITTING)) -> int:
    """How many mails are on their way to these servers, in these states."""
    sql = text("SELECT server, state FROM delivery WHERE state IN ('claimed', 'committing')")
    with trial.database.read() as connection:
        found = [(row.server, row.state) for row in connection.execute(sql)]
    return sum(server in servers and State(state) in states for server, state in found)


def _all_at_the_dot(trial: Trial) -> int:
    """Let nobody else in, and wait for the server to have the dot of each that was; how many it has."""
    trial.primary.set("mail", "stall")

    def is_still() -> bool:
        committing = _held(trial, "primary", states=(State.COMMITTING,))
        return _held(trial, "primary") == committing == _at(trial.primary, "dot")

    patiently(is_still, what=trial.logs)
    return _at(trial.primary, "dot")


def _long_letter_of(trial: Trial) -> Callable[[DeliverySeen], Expected]:
    letter = LONG_LETTER.replace("{{ name }}", "Ada")
    return lambda delivery: replace(trial.expected(delivery), text=letter)


def _nobody_is_given_up(trial: Trial, name: str, count: int) -> None:
    assert trial.count(name, State.SENT) + trial.count(name, State.UNCERTAIN) == count, trial.states(name)


@slow
def test_a_tarpit_holds_up_nobody_for_long(trial: Trial) -> None:
    trial.start_workers()
    trial.send("winter", addresses(40, "w"))
    trial.wait_until_finished("winter")  # connections are open: mail is claimed before the tarpit is felt
    with trial.outage("tarpit", "primary"):
        trial.primary.set("every", "delay", seconds=4.0)
        trial.send("spring", addresses(300))
        trial.wait_until_finished("spring")
    history = trial.verdict()
    _nobody_is_given_up(trial, "spring", 300)
    assert any(one.outcome == "unreachable" for one in history.reports), "claimed mail met it"
    spring = history.of_campaign["spring"]
    assert sum(one.server == "secondary" for one in spring) > 250


@slow
def test_both_servers_may_die_and_come_back(trial: Trial) -> None:
    emails = addresses(400)
    trial.start_workers()
    trial.send("spring", emails)
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=0.5)
    patiently(lambda: trial.count("spring", State.SENT) >= 50, what=trial.logs)
    trial.primary.set("dot", "stall")
    trial.secondary.set("dot", "accept-stall")
    patiently(lambda: _at(trial.primary, "dot") >= 1, what=trial.logs)
    patiently(lambda: _at(trial.secondary, "dot", "accept-stall") >= 1, what=trial.logs)
    trial.primary.suspend()
    trial.secondary.suspend()
    patiently(lambda: trial.count("spring", State.CLAIMED) == 0, what=trial.logs)
    at_dot = trial.count("spring", State.COMMITTING)
    assert at_dot >= 2, "the fault was met"
    with trial.outage("both killed", may_leave_uncertain=at_dot):
        trial.primary.kill()
        trial.secondary.kill()
        time.sleep(8)
        trial.primary.start()
        trial.secondary.start()
    trial.verdict()
    _nobody_is_given_up(trial, "spring", len(emails))


# What the network does to a server's mail.


def _weathers() -> Iterator[object]:
    # A body here has some 1600 octets, the commands before it some 100.
    fine = {"cut in its commands": 60, "cut in its body": 900}
    for name, octets in fine.items():
        yield pytest.param({"cut": TO_SERVER, "cut_at": octets}, False, id=name)
    yield pytest.param({"cut": TO_CLIENT, "cut_at": 300}, True, id="cut in its replies", marks=slow)
    yield pytest.param({"held": BOTH}, True, id="partitioned", marks=slow)
    yield pytest.param({"lost": frozenset({TO_CLIENT})}, True, id="its replies are lost", marks=slow)
    yield pytest.param({"lost": frozenset({TO_SERVER})}, False, id="what is said is lost", marks=slow)
    yield pytest.param({"octets_per_second": 400}, True, id="narrow", marks=slow)
    yield pytest.param({"latency_seconds": 0.7}, True, id="far away", marks=slow)


def _handed_over(trial: Trial) -> int:
    """Of how many mails the primary has had DATA and seen the end, be it a dot or a hang-up."""
    stats = trial.primary.stats()
    return stats.get("dots", 0) + stats.get("unfinished", 0)


def _sent_by_the_primary(trial: Trial, name: str) -> int:
    servers = trial.counts(name).servers
    return servers["primary"].sent if "primary" in servers else 0


@pytest.mark.parametrize(("weather", "doubtful"), tuple(_weathers()))
def test_a_bad_network_before_one_server(new_trial: Trials, weather: dict[str, Any], doubtful: bool) -> None:
    """Where there may be doubt, it is of no more mails than the server has begun to read and not settled."""
    far_trial = new_trial(network=True, delivery=IMPATIENT if doubtful else QUICK)
    network = far_trial.networks["primary"]
    emails = addresses(120)
    far_trial.start_workers()
    far_trial.send("spring", emails[:40])
    far_trial.wait_until_finished("spring")
    before = _handed_over(far_trial)
    with far_trial.outage("bad network", "primary", may_leave_uncertain=len(emails) if doubtful else 0):
        network.be(**weather)
        far_trial.send("summer", emails)
        far_trial.wait_until_finished("summer")
        assert network.met[next(iter(weather))] >= 1, "the fault was met"
        network.reset()
        network.heal()
    far_trial.send("autumn", emails)
    far_trial.verdict()
    sent = sum(_sent_by_the_primary(far_trial, name) for name in ("summer", "autumn"))
    unsettled = _handed_over(far_trial) - before - sent
    assert _totals(far_trial).get(State.UNCERTAIN, 0) <= unsettled
    _nobody_is_given_up(far_trial, "summer", len(emails))
    _nobody_is_given_up(far_trial, "autumn", len(emails))
    if not doubtful:
        assert far_trial.count("summer", State.SENT) == len(emails)


# TLS.


def _certificate(directory: Path) -> Path:
    """Of an authority that nobody knows."""
    file = directory / "wrong.pem"
    certificate = trustme.CA().issue_cert("127.0.0.1")
    file.write_bytes(
        certificate.private_key_pem.bytes() + b"".join(one.bytes() for one in certificate.cert_chain_pems)
    )
    assert ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(file) is None
    return file


SECURED = 'tls = "starttls"\nusername = "user"\npassword_file = "password"'
SECRET = "hunter2-of-the-primary"


@pytest.mark.parametrize("what", ["stripped", "wrong"])
def test_no_mail_and_no_password_goes_over_a_connection_that_is_not_what_was_asked_for(
    new_trial: Trials, tmp_path: Path, what: str
) -> None:
    options = ("--tls", "starttls", "--certificate", str(_certificate(tmp_path))) if what == "wrong" else ()
    (tmp_path / "trial").mkdir(exist_ok=True)
    (tmp_path / "trial" / "password").write_text(SECRET)
    (tmp_path / "trial" / "password").chmod(0o600)
    trial = new_trial(primary_lines=SECURED, primary_options=options)
    trial.start_workers()
    trial.send("spring", addresses(100))
    with trial.outage(f"STARTTLS {what}", "primary"):
        trial.wait_until_finished("spring")
    history = trial.verdict(secrets=[SECRET])
    assert {mail.server for mail in history.accepted} == {"secondary"}
    asked = trial.primary.stats()
    assert asked["commands.ehlo"] > 0, "it was tried"
    assert not {"commands.auth", "commands.mail", "dots"} & set(asked)


@slow
def test_a_place_without_faults_has_no_doubt(either_trial: Place) -> None:
    assert isinstance(either_trial, Trial)
    either_trial.start_workers()
    either_trial.send("spring", addresses(300))
    either_trial.verdict(final_within_seconds=60)
    assert either_trial.states("spring") == {State.SENT: 300}
