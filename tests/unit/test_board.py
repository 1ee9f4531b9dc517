"""What holds for all servers together, and what is told of changes. Time and chance are arguments."""

from hypothesis import given
from hypothesis import strategies as st

from campaigns.board import Board, Change, Heard, Rules, changes
from campaigns.breaker import Breaker, BreakerState, Fault
from tests.unit.strategies import ANY_TEXT, REPEATABLE

NOW = 1_700_000_000.0
MIDDLE = 0.5
SERVERS = ("one", "two")
RULES = Rules(servers=frozenset(SERVERS))
FAULTS = [Heard(fault=Fault(reason="refused"))] * 5


def opened(board: Board, server: str, now: float = NOW) -> Board:
    return board.at(now, RULES).after(server, FAULTS, now, RULES, MIDDLE)


def test_when_the_last_one_fails_no_cool_down_is_longer_than_the_first() -> None:
    board = Board({"one": Breaker(state=BreakerState.OPEN, since=NOW, open_until=NOW + 100, openings=6)})
    assert board.at(NOW + 1, RULES).of("one").open_until == NOW + 100, "two takes mail"
    board = opened(board, "two", NOW + 1)
    assert board.of("two").open_until == NOW + 3
    assert board.at(NOW + 1, RULES).of("one").open_until == NOW + 2.4
    assert board.at(NOW + 3, RULES).of("one").state is BreakerState.HALF_OPEN


def test_a_server_that_is_not_configured_is_nobody_left() -> None:
    board = opened(opened(Board({"retired": Breaker(worked_at=NOW)}), "one"), "two")
    assert board.of("two").openings == 1
    probed = board.at(NOW + 2.5, RULES).probed("one", NOW + 2.5, RULES, token="a", seconds=20)
    assert probed is not None
    assert probed.probed("two", NOW + 2.5, RULES, token="b", seconds=20) is None
    assert probed.probed("two", NOW + 23, RULES, token="b", seconds=20) is not None, "it has expired"


def test_while_another_takes_mail_each_has_its_own_trials() -> None:
    rules = Rules(servers=frozenset({"one", "two", "three"}))
    board = opened(opened(Board(), "one"), "two").at(NOW + 2.5, rules)
    probed = board.probed("one", NOW + 2.5, rules, token="a", seconds=20)
    assert probed is not None
    assert probed.probed("two", NOW + 2.5, rules, token="b", seconds=20) is not None


def test_a_change_says_what_was_what_is_and_why() -> None:
    board = opened(Board(), "one")
    (change,) = changes(Board(), board, RULES.policy)
    assert change == Change(server="one", before="closed", after="open", reason="5 faults in 0.0 s: refused")
    full = board.having("two", Breaker().filled(NOW, until=NOW + 9, reason="454"))
    (change,) = changes(board, full, RULES.policy)
    assert (change.kind, change.before, change.after, change.reason) == ("limit", "open", "full", "454")
    (change,) = (one for one in changes(full, full.at(NOW + 9, RULES), RULES.policy) if one.kind == "limit")
    assert (change.before, change.after) == ("full", "open")
    assert list(changes(full, full, RULES.policy)) == []


def told(board: Board, after: Board) -> list[tuple[str, str]]:
    return [(change.before, change.after) for change in changes(board, after, RULES.policy)]


def test_a_server_that_is_idle_and_dead_is_told_once_however_often_its_checks_fail() -> None:
    board, now, found = Board(), NOW, []
    for _ in range(50):
        present = board.at(now, RULES)
        failed = present.after_check("one", "refused", now, RULES, MIDDLE)
        found += told(board, present) + told(present, failed)
        board, now = failed, now + 150
    assert found == [("closed", "open")]
    assert board.of("one").failed_checks == 50


def test_a_trial_mail_is_told_and_so_is_what_became_of_it() -> None:
    board = opened(Board(), "one").at(NOW + 3, RULES)
    probed = board.probed("one", NOW + 3, RULES, token="t", seconds=20)
    assert probed is not None and told(board, probed) == [("open", "half-open")]
    failed = probed.after("one", [Heard(fault=Fault(reason="x", token="t"))], NOW + 4, RULES, MIDDLE)
    assert told(probed, failed) == [("half-open", "open")]
    later = failed.at(NOW + 90, RULES)
    assert told(failed, later) == [], "nothing but time passed"
    again = later.probed("one", NOW + 90, RULES, token="u", seconds=20)
    assert again is not None and told(later, again) == [("open", "half-open")]


@REPEATABLE
@given(ANY_TEXT | st.sampled_from(["null", "[]", "3", '{"one": null}', '{"one": {"faults": []}}']))
def test_what_cannot_be_read_is_closed_and_whole(text: str) -> None:
    assert Board.from_json(text).of("one") == Breaker()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(SERVERS), st.sampled_from(["fault", "success", "trial", "check"]), st.floats(0, 90)
    ),
    max_size=60,
)


@REPEATABLE
@given(STEPS, st.floats(0, 0.999))
def test_mail_never_waits_for_longer_than_the_first_cool_down_once_no_server_takes_any(
    steps: list[tuple[str, str, float]], random: float
) -> None:
    board, now = Board(), NOW
    for server, step, passed in steps:
        now += passed
        before = board.at(now, RULES)
        board = after(before, server, step, now, random)
        assert Board.from_json(board.to_json()) == board
        told = {change.server for change in changes(before, board, RULES.policy)}
        assert told <= {server}, "what is heard of one server changes no other's state"
    if not any(board.of(server).state is BreakerState.CLOSED for server in SERVERS):
        later = board.at(now + 2.4, RULES)
        assert all(later.of(server).state is BreakerState.HALF_OPEN for server in SERVERS)
        probed = later.probed("one", now + 2.4, RULES, token="t", seconds=20)
        assert probed is not None and probed.probed("two", now + 2.4, RULES, token="u", seconds=20) is None


def after(board: Board, server: str, step: str, now: float, random: float) -> Board:
    match step:
        case "fault":
            fault = Fault(reason="x", token="t")
            return board.after(server, [Heard(fault=fault)], now, RULES, random)
        case "success":
            return board.after(server, [Heard(successes=3)], now, RULES, random)
        case "trial":
            return board.after_trial(server, "t", now, RULES)
        case _:
            return board.after_check(server, "refused", now, RULES, random)


@REPEATABLE
@given(st.integers(0, 50), st.floats(0, 30))
def test_a_server_that_stopped_is_stalled_whoever_else_is_told_late_that_it_worked(
    successes: int, late: float
) -> None:
    """Successes are told late, and say when they were."""
    heard = [Heard(successes=successes, seconds_ago=12.0 + late)] if successes else []
    slow = Fault(reason="no answer", waited_seconds=11.0, age_seconds=11.0, is_stuck=True)
    board = Board().after("one", [*heard, Heard(fault=slow)], NOW, RULES, MIDDLE)
    assert board.of("one").state is BreakerState.OPEN
    recent = [Heard(successes=1, seconds_ago=10.0), Heard(fault=slow)]
    assert Board().after("one", recent, NOW, RULES, MIDDLE).of("one").state is BreakerState.CLOSED
