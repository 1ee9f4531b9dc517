"""How far a server's queue is filled."""

from campaigns.window import MOST, Window


def test_a_window_that_is_emptied_at_each_look_grows_up_to_its_limit() -> None:
    window, now = Window(floor=40), 0.0
    for _ in range(20):
        room = window.look(0, 500.0, now)
        window.took(room, room)
        now += 0.2
    assert window.size == MOST


def test_a_window_that_was_not_the_limit_does_not_grow() -> None:
    window = Window(floor=40)
    for turn in range(20):
        room = window.look(0, 0.0, turn * 0.2)
        window.took(1, room)
    assert window.size == 40


def test_a_slow_server_gets_a_few_seconds_of_work() -> None:
    window, now = Window(floor=40, size=4_000), 0.0
    for _ in range(50):
        room = window.look(window.size, 20.0, now)
        window.took(0, room)
        now += 0.2
    assert 80 <= window.size <= 160


def test_room_is_never_negative() -> None:
    assert Window(floor=10).look(500, 0.0, 0.0) == 0


def test_a_queue_that_nothing_leaves_for_a_while_is_stuck() -> None:
    window = Window(floor=10)
    window.look(5, 0.0, 100.0)
    window.look(5, 0.0, 102.0)
    assert not window.is_stuck(102.0)
    assert window.is_stuck(110.5)
    window.look(4, 0.0, 111.0)
    assert not window.is_stuck(111.5)
