"""The health board on a real Valkey server, shared by several boards, and without one."""

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from campaigns.breaker import BreakerState
from campaigns.health import HealthBoard
from campaigns.local.broker import EmbeddedBroker
from campaigns.routing import is_well

START = 1_700_000_000.0


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedBroker]:
    with tempfile.TemporaryDirectory(prefix="health") as directory:
        broker = EmbeddedBroker(socket=Path(directory) / "valkey.sock", directory=Path(directory) / "data")
        broker.start()
        yield broker
        broker.stop()


@pytest.fixture
def url(valkey: EmbeddedBroker) -> Iterator[str]:
    yield f"unix://{valkey.socket}?db=1"
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.flushall()


@pytest.fixture(params=["shared", "alone"])
def state_url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("url") if request.param == "shared" else None


def a_board(state_url: str | None, clock: Clock) -> HealthBoard:
    return HealthBoard(state_url, clock=clock, random=lambda: 0.5, monotonic=clock)


def opened(board: HealthBoard, server: str = "primary") -> None:
    for _ in range(3):
        board.fault(server, "refused")


def state(board: HealthBoard, server: str = "primary") -> str:
    known = board.snapshot().get(server)
    return "closed" if known is None else known.state


def test_the_third_fault_in_a_row_opens_and_is_the_change_to_record(state_url: str | None) -> None:
    board = a_board(state_url, Clock())
    assert board.fault("primary", "refused") is None
    assert board.fault("primary", "refused") is None
    change = board.fault("primary", "421 closing")
    assert change is not None
    assert (change.server, change.before, change.after, change.reason) == (
        "primary",
        BreakerState.CLOSED,
        BreakerState.OPEN,
        "421 closing",
    )
    assert board.fault("primary", "refused") is None
    health = board.snapshot()["primary"]
    assert (health.state, health.open_until, health.reason) == ("open", START + 2, "421 closing")
    assert state(board, "secondary") == "closed"


def test_a_success_between_faults_keeps_it_closed(state_url: str | None) -> None:
    board = a_board(state_url, Clock())
    for _ in range(10):
        board.fault("primary", "timeout")
        board.fault("primary", "timeout")
        board.success("primary")
    assert state(board) == "closed"


def test_a_whole_cycle_of_open_half_open_and_closed(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    opened(board)
    assert board.may_probe("primary") is None
    clock.pass_seconds(2)
    assert state(board) == "half-open"
    probe = board.may_probe("primary")
    assert probe is not None
    assert probe.change is not None
    assert (probe.change.before, probe.change.after) == (BreakerState.OPEN, BreakerState.HALF_OPEN)
    assert board.may_probe("primary") is None
    change = board.success("primary")
    assert change is not None
    assert change.after is BreakerState.CLOSED
    assert state(board) == "closed"
    assert board.may_probe("primary") is not None


def test_a_fault_while_half_open_opens_for_twice_as_long(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    opened(board)
    clock.pass_seconds(2)
    assert board.may_probe("primary")
    change = board.fault("primary", "refused")
    assert change is not None
    assert change.after is BreakerState.OPEN
    assert board.snapshot()["primary"].open_until == clock.now + 4


def test_a_probe_that_told_nothing_is_given_back_or_expires(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    opened(board)
    clock.pass_seconds(2)
    first = board.may_probe("primary")
    assert first is not None
    board.release(first)
    assert board.may_probe("primary") is not None
    assert board.may_probe("primary") is None
    clock.pass_seconds(21)
    assert board.may_probe("primary") is not None


def test_a_full_server_is_full_until_its_time_and_an_earlier_time_does_not_shorten_it(
    state_url: str | None,
) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    board.set_full("primary", START + 60)
    board.set_full_for("primary", 10)
    assert board.snapshot()["primary"].full_until == START + 60
    assert state(board) == "closed"
    clock.pass_seconds(60)
    assert board.snapshot()["primary"].full_until is None


def test_how_long_a_server_rests_is_told_by_the_boards_own_clock(state_url: str | None) -> None:
    clock = Clock()
    clock.now = 1_000.0  # decades from every other clock
    board = a_board(state_url, clock)
    board.set_full_for("primary", 60)
    clock.pass_seconds(20)
    full = board.snapshot()["primary"]
    assert (full.is_full, full.rest_seconds) == (True, 40)
    assert not is_well(full)
    clock.pass_seconds(40)
    rested = board.snapshot()["primary"]
    assert (rested.is_full, rested.rest_seconds) == (False, 0)
    assert is_well(rested)
    opened(board)
    assert board.snapshot()["primary"].rest_seconds == 2


def test_what_one_process_sees_all_know(url: str) -> None:
    clock = Clock()
    one, two, other = a_board(url, clock), a_board(url, clock), HealthBoard(url, "others", clock=clock)
    one.fault("primary", "refused")
    two.fault("primary", "refused")
    one.fault("primary", "refused")
    assert state(two) == "open"
    assert state(other) == "closed"
    clock.pass_seconds(2)
    assert one.may_probe("primary")
    assert two.may_probe("primary") is None


def test_of_many_that_ask_at_once_one_may_probe(url: str) -> None:
    clock = Clock()
    boards = [a_board(url, clock) for _ in range(8)]
    opened(boards[0])
    clock.pass_seconds(2)
    barrier, probes = threading.Barrier(8), []

    def ask(board: HealthBoard) -> None:
        barrier.wait()
        probes.append(board.may_probe("primary"))

    threads = [threading.Thread(target=ask, args=[board]) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([probe for probe in probes if probe]) == 1


def test_of_faults_that_many_report_at_once_exactly_one_is_the_change(url: str) -> None:
    boards = [a_board(url, Clock()) for _ in range(8)]
    barrier, changes = threading.Barrier(8), []

    def report(board: HealthBoard) -> None:
        barrier.wait()
        changes.append(board.fault("primary", "refused"))

    threads = [threading.Thread(target=report, args=[board]) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([change for change in changes if change]) == 1
    assert state(boards[0]) == "open"


def test_without_a_clock_of_ours_the_servers_time_is_used(url: str) -> None:
    board = HealthBoard(url)
    before = time.time()
    opened(board)
    health = board.snapshot()["primary"]
    assert health.open_until is not None
    assert before - 1 <= health.since <= time.time() + 1


def test_a_flush_closes_every_breaker_and_harms_nothing(url: str, valkey: EmbeddedBroker) -> None:
    board = a_board(url, Clock())
    opened(board)
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.flushall()
    assert state(board) == "closed"
    assert board.fault("primary", "refused") is None
    assert board.may_probe("primary")


def test_rubbish_in_redis_is_closed_and_is_replaced(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.hset("campaigns:health", "primary", "\u20ac not json")
    board = a_board(url, Clock())
    assert state(board) == "closed"
    opened(board)
    assert state(board) == "open"


def test_what_the_board_keeps_expires(url: str) -> None:
    opened(a_board(url, Clock()))
    with redis.Redis.from_url(url) as client:
        assert 0 < client.ttl("campaigns:health") <= 86_400


def test_while_redis_is_away_each_process_judges_alone_and_nothing_blocks() -> None:
    clock = Clock()
    board = a_board("redis://127.0.0.1:1/0", clock)
    started = time.monotonic()
    opened(board)
    assert state(board) == "open"
    assert board.may_probe("primary") is None
    clock.pass_seconds(2)
    assert board.may_probe("primary")
    board.success("primary")
    assert state(board) == "closed"
    assert time.monotonic() - started < 1.0
    assert "away" in repr(board)


def test_a_redis_that_hangs_is_not_asked_again_at_each_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        board = HealthBoard(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        started = time.monotonic()
        for _ in range(50):
            board.fault("primary", "timeout")
        board.snapshot()
        assert time.monotonic() - started < 0.5
        board.close()


def test_when_redis_is_back_the_shared_state_is_the_truth_again(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="health") as directory:
        broker = EmbeddedBroker(socket=Path(directory) / "valkey.sock", directory=tmp_path)
        clock = Clock()
        board = a_board(f"unix://{broker.socket}?db=1", clock)
        opened(board)
        assert board.is_away
        broker.start()
        try:
            clock.pass_seconds(60)
            assert state(board) == "closed"
            assert "shared" in repr(board)
        finally:
            board.close()
            broker.stop()
