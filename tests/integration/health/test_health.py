"""The health board on a real Valkey server, shared by several boards, and without one."""

import logging
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from campaigns import health
from campaigns.absence import Absence
from campaigns.breaker import BreakerState, Fault
from campaigns.health import Change, HealthBoard
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


def a_board(state_url: str | None, clock: Clock, servers: Sequence[str] = ()) -> HealthBoard:
    return HealthBoard(state_url, clock=clock, servers=servers, random=lambda: 0.5, monotonic=clock)


def opened(board: HealthBoard, server: str = "primary") -> None:
    for _ in range(5):
        board.fault(server, "refused")


def state(board: HealthBoard, server: str = "primary") -> str:
    known = board.snapshot().get(server)
    return "closed" if known is None else known.state


def test_the_fifth_fault_in_a_row_opens_and_is_the_change_to_record(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    for _ in range(4):
        assert board.fault("primary", "refused") is None
        clock.pass_seconds(0.2)
    change = board.fault("primary", "421 closing")
    assert change is not None
    assert (change.kind, change.server, change.before, change.after, change.reason) == (
        "breaker",
        "primary",
        BreakerState.CLOSED,
        BreakerState.OPEN,
        "5 faults in 0.8 s: 421 closing",
    )
    assert board.fault("primary", "refused") is None
    health = board.snapshot()["primary"]
    assert (health.state, health.open_until, health.share) == ("open", clock.now + 2, 0.0)
    assert state(board, "secondary") == "closed"


def test_a_success_between_faults_keeps_it_closed(state_url: str | None) -> None:
    board = a_board(state_url, Clock())
    for _ in range(10):
        for _ in range(4):
            board.fault("primary", "timeout")
        for _ in range(10):
            board.success("primary")
    assert state(board) == "closed"


def test_a_whole_cycle_of_open_half_open_closed_and_back_in_steps(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    opened(board)
    assert board.may_probe("primary") is None
    clock.pass_seconds(2)
    assert state(board) == "half-open"
    for number in range(3):
        probe = board.may_probe("primary")
        assert probe is not None and probe.token
        assert (probe.change is not None) is (number == 0), "it became half-open once"
        assert board.may_probe("primary") is None
        change = board.success("primary", token=probe.token)
    assert change is not None
    assert (change.after, change.reason) == ("closed", "3 trial mails went through; back at 10 %")
    shares = [board.look()["primary"].share]
    for _ in range(3):
        board.success("primary")
        clock.pass_seconds(5)
        shares.append(board.look()["primary"].share)
    assert shares == [0.1, 0.25, 0.5, 1.0]
    told = [(change.kind, change.before, change.after) for change in board.take_changes()]
    assert told == [
        ("breaker", "closed", "open"),
        ("breaker", "open", "half-open"),
        ("breaker", "half-open", "closed"),
        ("share", "10 %", "25 %"),
        ("share", "25 %", "50 %"),
        ("share", "50 %", "100 %"),
    ]
    assert board.take_changes() == []


def test_changes_are_told_in_the_order_in_which_they_were_made(
    state_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = a_board(state_url, Clock(), ["primary", "secondary"])
    second = threading.Thread(target=opened, args=[board, "secondary"])
    found = health.changes

    def slow_at_first(*given: Any) -> Iterable[Change]:
        made = list(found(*given))
        if made and second.ident is None:
            second.start()
            second.join(0.5)
        return made

    monkeypatch.setattr(health, "changes", slow_at_first)
    opened(board, "primary")
    second.join()
    assert [change.server for change in board.take_changes()] == ["primary", "secondary"]


def test_a_trial_that_fails_opens_for_twice_as_long(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    opened(board)
    clock.pass_seconds(2)
    probe = board.may_probe("primary")
    assert probe
    assert board.fault("primary", "of a mail that began before") is None
    change = board.fault("primary", Fault(reason="refused", token=probe.token))
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
    clock.pass_seconds(31)
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


def test_fullness_is_told_when_it_begins_and_when_it_ends_once_each(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    board.set_full_for("primary", 60, "452 4.5.3 too many")
    board.set_full_for("primary", 90, "454 throttled")
    board.look()
    assert [told(change) for change in board.take_changes()] == [
        ("limit", "open", "full", "452 4.5.3 too many")
    ]
    clock.pass_seconds(90)
    board.look()
    board.look()
    assert [told(change) for change in board.take_changes()] == [
        ("limit", "full", "open", "its time is over")
    ]


def test_a_servers_own_word_that_it_is_full_for_a_day_is_not_forgotten_before_its_end(url: str) -> None:
    a_board(url, Clock()).set_full_for("primary", 86_400, "454 daily quota exceeded")
    with redis.Redis.from_url(url) as client:
        (key,) = client.keys("*:board")
        assert client.ttl(key) > 86_400


def told(change: Change) -> tuple[str, str, str, str]:
    return change.kind, change.before, change.after, change.reason


def test_each_change_is_told_by_one_of_all_processes(url: str) -> None:
    clock = Clock()
    boards = [a_board(url, clock) for _ in range(4)]
    opened(boards[0])
    boards[0].set_full_for("secondary", 1.0, "454")
    clock.pass_seconds(2)
    for board in boards:
        board.look()
    for board in boards:
        board.may_probe("primary")
    changes = [change.after for board in boards for change in board.take_changes()]
    assert changes == ["open", "full", "open", "half-open"]


def test_changes_that_could_not_be_recorded_come_again_in_their_order() -> None:
    board = a_board(None, Clock())
    opened(board, "primary")
    opened(board, "secondary")
    changes = board.take_changes()
    board.keep_changes(changes)
    assert board.take_changes() == changes


def test_what_one_process_sees_all_know(url: str) -> None:
    clock = Clock()
    one, two, other = a_board(url, clock), a_board(url, clock), HealthBoard(url, "others", clock=clock)
    for board in (one, two, one, two, one):
        board.fault("primary", "refused")
    assert state(two) == "open"
    assert state(other) == "closed"
    clock.pass_seconds(2)
    assert one.may_probe("primary")
    assert two.may_probe("primary") is None


def test_successes_are_told_once_a_second_and_before_any_fault(url: str) -> None:
    clock = Clock()
    board, other = a_board(url, clock), a_board(url, clock)
    for _ in range(100):
        board.count_success("primary")
    with redis.Redis.from_url(url) as client:
        board.look()
        assert client.get("campaigns:board") is None, "not yet"
        clock.pass_seconds(1)
        board.look()
        assert b"[[" in (client.get("campaigns:board") or b"")
    for _ in range(4):
        other.fault("primary", "refused")
    board.count_success("primary")
    board.fault("primary", "refused")
    assert other.snapshot()["primary"].consecutive_faults == 1, "it had worked in between"


def test_a_part_of_all_mail_that_fails_opens_it_whoever_sees_it(url: str) -> None:
    clock = Clock()
    boards = [a_board(url, clock) for _ in range(2)]
    for number in range(19):
        board = boards[number % 2]
        board.fault("primary", "421 busy") if number % 4 < 3 else board.success("primary")
        clock.pass_seconds(0.5)
    assert state(boards[0]) == "closed", "too few to judge by"
    change = boards[0].fault("primary", "421 busy")
    assert change is not None
    assert change.reason == "80 % of 20 mails failed within 30 s: 421 busy"


def test_while_no_server_takes_mail_one_trial_goes_out_over_all_of_them(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock, servers=("primary", "secondary"))
    opened(board, "primary")
    opened(board, "secondary")
    clock.pass_seconds(2.5)
    first = board.may_probe("primary")
    assert first is not None
    assert board.may_probe("secondary") is None
    board.fault("primary", Fault(reason="refused", token=first.token))
    assert board.snapshot()["primary"].open_until == clock.now + 2, "it is not condemned further"
    assert board.may_probe("secondary") is not None


def test_servers_that_the_operator_closed_are_not_left(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock, servers=("primary", "secondary"))
    opened(board, "primary")
    for cool_down in (4, 8):
        clock.pass_seconds(60)
        probe = board.may_probe("primary")
        assert probe is not None
        board.fault("primary", Fault(reason="refused", token=probe.token))
        assert board.snapshot()["primary"].open_until == clock.now + cool_down
    board.consider(["primary"])
    clock.pass_seconds(2.5)
    assert state(board) == "half-open", "nobody else is left: the first cool-down's length is enough"


def test_checks_without_a_mail_condemn_when_they_fail_in_a_row_and_close_nothing(
    state_url: str | None,
) -> None:
    clock = Clock()
    board = a_board(state_url, clock)
    for _ in range(4):
        board.probe_result("primary", False, "refused")
    board.probe_result("primary", True)
    for _ in range(4):
        assert board.probe_result("primary", False, "refused") is None
    change = board.probe_result("primary", False, "refused")
    assert change is not None
    assert change.reason == "5 checks in a row failed: refused"
    clock.pass_seconds(2)
    board.probe_result("primary", True)
    assert state(board) == "half-open"


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
    """All of them read the board before the first one writes it: they ask for the time in between."""
    barrier, changes, met = threading.Barrier(8), [], threading.local()

    def clock() -> float:
        if getattr(met, "is_due", False):
            met.is_due = False
            barrier.wait()
        return START

    boards = [HealthBoard(url, clock=clock, random=lambda: 0.5, monotonic=Clock()) for _ in range(8)]

    def report(board: HealthBoard) -> None:
        met.is_due = True
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


@pytest.mark.parametrize(
    "rubbish", ["\u20ac not json", "[]", '{"primary": 1}', '{"primary": {"faults": null}}']
)
def test_rubbish_in_redis_is_closed_and_is_replaced(url: str, rubbish: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("campaigns:board", rubbish)
    board = a_board(url, Clock())
    assert state(board) == "closed"
    opened(board)
    assert state(board) == "open"


def test_what_the_board_keeps_expires(url: str) -> None:
    opened(a_board(url, Clock()))
    with redis.Redis.from_url(url) as client:
        assert 0 < client.ttl("campaigns:board") <= 3 * 86_400


def test_while_redis_is_away_each_process_judges_alone_and_nothing_blocks() -> None:
    clock = Clock()
    board = a_board("redis://127.0.0.1:1/0", clock)
    started = time.monotonic()
    opened(board)
    assert state(board) == "open"
    assert board.may_probe("primary") is None
    for _ in range(3):
        clock.pass_seconds(2)
        probe = board.may_probe("primary")
        assert probe
        board.success("primary", token=probe.token)
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


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [one.getMessage() for one in caplog.records if one.name == "campaigns.health"]
    caplog.clear()
    return lines


def test_redis_s_absence_and_its_return_are_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "campaigns.health")  # a command that ran here before made it silent
    with tempfile.TemporaryDirectory(prefix="health") as directory:
        broker = EmbeddedBroker(socket=Path(directory) / "valkey.sock", directory=tmp_path)
        clock = Clock()
        boards = [a_board(f"unix://{broker.socket}?db=1", clock) for _ in range(3)]
        for _ in range(10):
            for board in boards:
                board.look()
            clock.pass_seconds(2)
        assert lines_of(caplog) == ["health board is away, judging servers in this process"]
        assert boards[0].trouble == "", "it is asked again"
        broker.start()
        for board in boards * 2:
            board.look()
            board.close()
        broker.stop()
        assert lines_of(caplog) == ["the health board is back, all processes judge together again"]


def test_an_answer_to_what_was_asked_before_it_went_away_is_no_return(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "campaigns.health")
    absence = Absence(logging.getLogger("campaigns.health"), gone="gone", back="back")
    absence.goes_on(OSError(), until=3.0)
    absence.ends(2.9)
    assert lines_of(caplog) == ["gone"]
    absence.ends(3.0)
    absence.ends(3.1)
    assert lines_of(caplog) == ["back"]


def test_what_one_process_judges_alone_is_told_as_that() -> None:
    board = a_board("redis://127.0.0.1:1/0", Clock())
    opened(board)
    (change,) = board.take_changes()
    assert change.reason == "5 faults in 0.0 s: refused (one process alone, while Redis is away)"
    board.close()


def test_a_redis_that_hangs_is_not_said_to_be_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = HealthBoard(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        gone = HealthBoard("redis://127.0.0.1:1/0")
        for board in (hanging, gone):
            assert board.trouble == ""
            board.look()
            board.close()
        assert (hanging.trouble, gone.trouble) == ("did not answer in time", "is not there")


def test_while_no_server_takes_mail_trials_that_fail_are_not_told(state_url: str | None) -> None:
    clock = Clock()
    board = a_board(state_url, clock, ["primary", "secondary"])
    opened(board, "primary")
    opened(board, "secondary")
    assert [change.server for change in board.take_changes()] == ["primary", "secondary"]
    for _ in range(10):
        clock.pass_seconds(3)
        for server in ("primary", "secondary"):
            probe = board.may_probe(server)
            assert probe
            board.fault(server, Fault(reason="refused", token=probe.token))
    assert board.take_changes() == []
    clock.pass_seconds(3)
    for _ in range(3):
        probe = board.may_probe("primary")
        assert probe
        board.success("primary", token=probe.token)
    (closed,) = board.take_changes()
    assert (closed.server, closed.before, closed.after) == ("primary", "open", "closed")
    probe = board.may_probe("secondary")
    assert probe and probe.change and probe.change.after == "half-open", "another takes mail: it is news"
