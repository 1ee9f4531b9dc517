"""The database loses replies to COMMIT, takes no writes, or is full. `test_outages` kills and locks it."""

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from campaigns.states import State
from tests.acceptance.place import addresses
from tests.faults.proxy import BOTH, BadNetwork
from tests.faults.trial import Trial, Trials, patiently
from tests.postgres import PostgresServer, postgres_server

slow = pytest.mark.slow
OUTAGE_SECONDS = 8.0
AWAY = "the database does not answer"
"""What a worker writes that cannot reach it, or write to it."""


@pytest.fixture
def database_network(postgres: PostgresServer) -> Iterator[BadNetwork]:
    with BadNetwork(postgres.port) as network:
        yield network


@pytest.fixture
def far_trial(new_trial: Trials, postgres_url: str, database_network: BadNetwork) -> Trial:
    """The workers reach the database over a bad network; the test does not."""
    through = make_url(postgres_url).set(port=database_network.port).render_as_string(hide_password=False)
    return new_trial(postgres_url, worker_environ={"CAMPAIGNS_DATABASE": through})


def _under_way(trial: Trial, count: int) -> list[str]:
    """So slow that it takes seconds whatever the machine can do."""
    emails = addresses(count)
    for server in (trial.primary, trial.secondary):
        server.set("dot", "delay", seconds=0.2)
    trial.start_workers()
    trial.send("spring", emails)
    patiently(lambda: trial.count("spring", State.SENT) >= 50, what=trial.logs)
    return emails


def _all_are_sent(trial: Trial, emails: list[str]) -> None:
    trial.verdict()
    assert trial.states("spring") == {State.SENT: len(emails)}, "no doubt is left: every outcome was kept"


@pytest.mark.parametrize("times", [20])
def test_a_commit_whose_reply_is_lost_changes_nothing_twice(
    far_trial: Trial, database_network: BadNetwork, times: int
) -> None:
    for server in (far_trial.primary, far_trial.secondary):
        server.set("dot", "delay", seconds=0.02)
    far_trial.start_workers()
    emails = addresses(600)
    with far_trial.outage("replies to COMMIT lost", "database"):
        far_trial.send("spring", emails)
        patiently(lambda: far_trial.count("spring", State.SENT) >= 20, what=far_trial.logs)
        database_network.be(unanswered=b"COMMIT", unanswered_times=times)
        far_trial.wait_until_finished("spring")
        lost = database_network.unanswered
        database_network.heal()
    assert lost >= 5, "the fault was met"
    _all_are_sent(far_trial, emails)


@slow
def test_a_database_that_cannot_be_reached_is_waited_for(
    far_trial: Trial, database_network: BadNetwork
) -> None:
    emails = _under_way(far_trial, 1_000)
    with far_trial.outage_on_the_way("spring", "partition", "database"):
        database_network.be(held=BOTH)
        time.sleep(OUTAGE_SECONDS)
        database_network.heal()
        assert database_network.met["held"] >= 1, "the fault was met"
    _all_are_sent(far_trial, emails)


@slow
def test_connections_to_the_database_that_are_reset_again_and_again(
    far_trial: Trial, database_network: BadNetwork
) -> None:
    emails = _under_way(far_trial, 1_000)
    with far_trial.outage_on_the_way("spring", "resets", "database"):
        for _ in range(10):
            database_network.reset()
            time.sleep(0.4)
        assert database_network.met["reset"] >= 10, "the fault was met"
    _all_are_sent(far_trial, emails)


@slow
def test_a_database_that_takes_no_writes_is_waited_for(
    new_trial: Trials, own_postgres: PostgresServer
) -> None:
    trial = new_trial(own_postgres.url(own_postgres.create_database()))
    emails = _under_way(trial, 1_000)
    with trial.outage_on_the_way("spring", "read-only", "database"):
        _configure(own_postgres, "default_transaction_read_only = on")
        time.sleep(1)
        accepted = trial.accepted_count()
        time.sleep(OUTAGE_SECONDS)
        assert trial.accepted_count() == accepted, "nothing is sent that could not be recorded"
        assert AWAY in trial.logs(100_000), "the fault was met"
        _configure(own_postgres, "default_transaction_read_only = off")
    _all_are_sent(trial, emails)


def _configure(postgres: PostgresServer, setting: str) -> None:
    postgres.execute(f"ALTER SYSTEM SET {setting}")
    postgres.execute("SELECT pg_reload_conf()")


@slow
def test_a_database_that_crashes_at_once_after_its_start_again(
    new_trial: Trials, own_postgres: PostgresServer
) -> None:
    trial = new_trial(own_postgres.url(own_postgres.create_database()))
    emails = _under_way(trial, 1_000)
    with trial.outage_on_the_way("spring", "killed twice", "database"):
        for pause_seconds in (3.0, 0.5):
            own_postgres.stop(signal.SIGQUIT)
            time.sleep(pause_seconds)
            own_postgres.start()
        trial.database.close()  # our own connections are dead, too
    assert AWAY in trial.logs(100_000), "the fault was met"
    _all_are_sent(trial, emails)


@contextlib.contextmanager
def _small_disk(mebioctets: int) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="campaigns-disk-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebioctets}m,mode=755", "none", str(directory)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        directory.rmdir()
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        directory.rmdir()


def _fill(disk: Path) -> Path:
    """Until not one octet is left."""
    filler = disk / "filler"
    for size in (65536, 1):
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * size)
    return filler


def _full_for_a_while(trial: Trial, disk: Path) -> None:
    filler = _fill(disk)
    patiently(lambda: AWAY in trial.logs(10_000), what=trial.logs)
    time.sleep(OUTAGE_SECONDS)
    filler.unlink()


@slow
def test_a_full_disk_under_sqlite_is_waited_out(new_trial: Trials) -> None:
    with _small_disk(32) as disk, contextlib.ExitStack() as stack:
        trial = new_trial(f"sqlite:///{disk}/campaigns.db")
        stack.callback(trial.database.close)
        emails = _under_way(trial, 1_500)
        with trial.outage_on_the_way("spring", "disk full", "database"):
            _full_for_a_while(trial, disk)
        _all_are_sent(trial, emails)
        for worker in trial.workers:
            trial.kill(worker)


@slow
def test_a_full_disk_under_postgresql_is_waited_out(new_trial: Trials) -> None:
    with _small_disk(400) as disk, postgres_server(disk) as server:
        trial = new_trial(server.url(server.create_database()))
        emails = _under_way(trial, 1_500)
        with trial.outage_on_the_way("spring", "disk full", "database"):
            _full_for_a_while(trial, disk)
            if not server.is_running:  # it gives up where it cannot write its log; an operator starts it
                server.start()
            trial.database.close()  # our own connections may be dead, too
        _all_are_sent(trial, emails)
        for worker in trial.workers:
            trial.kill(worker)
        trial.database.close()
