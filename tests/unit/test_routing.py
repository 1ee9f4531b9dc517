"""Which server may take a mail, and how a batch is split."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.decision import Block
from campaigns.routing import Assignment, Share, assign, probing, usable
from tests.unit.strategies import REPEATABLE

NOW = 1_700_000_000.0
PLENTY = 10**9
NOTHING_OWED = Share()


@dataclass(frozen=True)
class Server:
    name: str
    weight: int = 1


@dataclass(frozen=True)
class Health:
    state: str = "closed"
    is_full: bool = False


@dataclass(frozen=True)
class Due:
    delivery_id: int
    server: str | None = None


PRIMARY, SECONDARY, COLD = Server("primary", 70), Server("secondary", 30), Server("cold", 0)
ROUTE = (PRIMARY, SECONDARY, COLD)
READ = {"primary", "secondary", "cold"}
ILL = Health("open")
HALF = Health("half-open")


def usable_now(
    health: Mapping[str, Health] | None = None,
    readers: set[str] | None = None,
    blocks: Iterable[Block] = (),
    without: str | None = None,
) -> tuple[str, ...]:
    return usable(
        ROUTE,
        health=health or {},
        readers=READ if readers is None else readers,
        blocks=blocks,
        sender="news@example.org",
        domain="example.com",
        now=NOW,
        without=without,
    )


def test_hot_servers_take_mail_in_the_order_of_the_route_and_cold_ones_do_not() -> None:
    assert usable_now() == ("primary", "secondary")


def test_a_cold_server_takes_mail_only_while_no_hot_one_can() -> None:
    assert usable_now({"primary": ILL}) == ("secondary",)
    assert usable_now({"primary": ILL, "secondary": ILL}) == ("cold",)


@pytest.mark.parametrize("health", [ILL, HALF, Health("closed", True)])
def test_an_ill_or_full_server_takes_no_mail(health: Health) -> None:
    assert usable_now({"primary": health}) == ("secondary",)


def test_with_every_server_ill_the_mail_waits() -> None:
    assert usable_now({"primary": ILL, "secondary": ILL, "cold": HALF}) == ()


def test_a_queue_that_nobody_reads_takes_no_mail_while_another_is_read() -> None:
    assert usable_now(readers={"secondary"}) == ("secondary",)
    assert usable_now(readers=set()) == ("primary", "secondary")
    assert usable_now(readers={"cold"}) == ("cold",)


def test_mail_for_a_server_that_is_ill_does_not_go_to_one_that_nobody_reads() -> None:
    assert usable_now({"primary": ILL}, readers={"primary"}) == ()


def test_a_server_is_never_its_own_alternative() -> None:
    assert usable_now(without="primary") == ("secondary",)
    assert usable_now({"secondary": ILL}, without="primary") == ("cold",)


@pytest.mark.parametrize(
    ("block", "is_off"),
    [
        (Block(server="primary"), True),
        (Block(server="primary", sender="news@example.org"), True),
        (Block(server="primary", sender="other@example.org"), False),
        (Block(server="primary", domain="example.com"), True),
        (Block(server="primary", domain="example.net"), False),
        (Block(server="primary", sender="news@example.org", domain="example.net"), False),
        (Block(server="primary", until=NOW + 1), True),
        (Block(server="primary", until=NOW), False),
    ],
)
def test_a_block_takes_a_server_off_what_it_names_until_it_ends(block: Block, is_off: bool) -> None:
    assert ("primary" not in usable_now(blocks=[block])) == is_off


def test_half_open_servers_are_to_be_probed_where_somebody_reads_them() -> None:
    health = {"primary": HALF, "secondary": ILL, "cold": HALF}
    assert probing(ROUTE, health=health, readers=READ) == ("primary", "cold")
    assert probing(ROUTE, health=health, readers={"cold"}) == ("cold",)


def split(
    due: Iterable[Due],
    weights: Mapping[str, float],
    room: Mapping[str, int] | None = None,
    share: Share = NOTHING_OWED,
    spill: bool = False,
) -> Assignment:
    room = dict.fromkeys(weights, PLENTY) if room is None else room
    return assign(due, weights=weights, room=room, share=share, spill=spill)


def fresh(count: int) -> list[Due]:
    return [Due(number) for number in range(count)]


@pytest.mark.parametrize("batch", [1, 7, 333, 10_000])
def test_70_30_splits_10_000_exactly_however_small_the_batches(batch: int) -> None:
    totals: Counter[str] = Counter()
    share = Share()
    due = fresh(10_000)
    for start in range(0, len(due), batch):
        assignment = split(due[start : start + batch], {"primary": 70, "secondary": 30}, share=share)
        share = assignment.share
        totals.update(server for _, server in assignment.assigned)
    assert totals == {"primary": 7_000, "secondary": 3_000}


WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 100), min_size=1)
BATCHES = st.lists(st.integers(0, 40), max_size=12)


@REPEATABLE
@given(WEIGHTS, BATCHES)
def test_no_server_is_ever_far_from_its_share(weights: dict[str, int], batches: list[int]) -> None:
    share, totals, count = Share(), Counter[str](), 0
    for batch in batches:
        assignment = split(fresh(batch), weights, share=share)
        share, count = assignment.share, count + batch
        assert not assignment.held
        totals.update(server for _, server in assignment.assigned)
    even = sum(weights.values()) == 0
    whole = len(weights) if even else sum(weights.values())
    for name, weight in weights.items():
        due = count * (1 if even else weight) / whole
        assert abs(totals[name] - due) < len(weights)


@REPEATABLE
@given(
    WEIGHTS,
    st.lists(st.none() | st.sampled_from("abcde"), max_size=60),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 20)),
    st.booleans(),
)
def test_everybody_is_assigned_once_or_held_and_no_window_overflows(
    weights: dict[str, int], last: list[str | None], room: dict[str, int], spill: bool
) -> None:
    due = [Due(number, server) for number, server in enumerate(last)]
    assignment = split(due, weights, room, spill=spill)
    ids = [one for one, _ in assignment.assigned] + list(assignment.held)
    assert sorted(ids) == list(range(len(due)))
    counts = Counter(server for _, server in assignment.assigned)
    assert all(server in weights and count <= room.get(server, 0) for server, count in counts.items())
    assert abs(sum(assignment.share.owed.values())) < 1e-6
    if spill and assignment.held:
        fresh_held = [one for one in assignment.held if last[one] not in weights]
        assert not fresh_held or all(counts[name] >= room.get(name, 0) for name in weights)


def test_deferred_mail_goes_back_to_its_server_and_new_mail_keeps_the_proportion() -> None:
    due = [Due(number, "secondary" if number < 50 else None) for number in range(150)]
    assignment = split(due, {"primary": 70, "secondary": 30})
    assert all(server == "secondary" for number, server in assignment.assigned if number < 50)
    new = Counter(server for number, server in assignment.assigned if number >= 50)
    assert new == {"primary": 70, "secondary": 30}


def test_mail_deferred_by_a_server_that_is_not_usable_now_is_new_to_the_others() -> None:
    assignment = split([Due(1, "gone")], {"primary": 70})
    assert assignment.assigned == ((1, "primary"),)


def test_a_server_without_room_holds_the_batch_so_that_the_weights_hold() -> None:
    assignment = split(fresh(100), {"primary": 70, "secondary": 30}, {"primary": 7, "secondary": PLENTY})
    counts = Counter(server for _, server in assignment.assigned)
    assert counts["primary"] == 7
    assert counts["secondary"] <= 4
    assert len(assignment.held) == 100 - counts.total()


def test_with_spill_the_others_take_what_has_no_room_and_owe_nothing_for_it() -> None:
    weights = {"primary": 70.0, "secondary": 30.0}
    spilled = split(fresh(100), weights, {"primary": 7, "secondary": PLENTY}, spill=True)
    assert Counter(server for _, server in spilled.assigned) == {"primary": 7, "secondary": 93}
    after = Counter(server for _, server in split(fresh(1000), weights, share=spilled.share).assigned)
    assert abs(after["primary"] - 700) <= 1


def test_what_was_held_is_not_counted_as_given() -> None:
    weights = {"primary": 70.0, "secondary": 30.0}
    cut = split(fresh(100), weights, {"primary": 0, "secondary": PLENTY})
    after = Counter(server for _, server in split(fresh(1000), weights, share=cut.share).assigned)
    assert abs(after["primary"] - 700) <= 1


def test_cold_servers_share_evenly_among_themselves() -> None:
    counts = Counter(server for _, server in split(fresh(100), {"a": 0, "b": 0}).assigned)
    assert counts == {"a": 50, "b": 50}


def test_a_server_that_comes_back_is_not_flooded_with_what_it_missed() -> None:
    both = {"primary": 70.0, "secondary": 30.0}
    share = split(fresh(1000), {"secondary": 30.0}, share=split(fresh(10), both).share).share
    counts = Counter(server for _, server in split(fresh(100), both, share=share).assigned)
    assert abs(counts["primary"] - 70) <= 1


def test_without_a_usable_server_everybody_is_held() -> None:
    assert split(fresh(3), {}).held == (0, 1, 2)
