"""How long a server keeps a mail waiting, by a clock that knows when the process was not awake."""

from campaigns.reply import Phase
from workers.wait import AwakeClock, Wait


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_slowest_answer_is_remembered_the_one_under_way_too() -> None:
    clock = Clock()
    wait = Wait(clock)
    with wait.during(Phase.MAIL):
        clock.now += 3
    with wait.during(Phase.RCPT):
        clock.now += 1
        assert (wait.phase, wait.seconds, wait.slowest_seconds) == (Phase.RCPT, 1, 3)
        clock.now += 4
        assert wait.slowest_seconds == 5
    clock.now += 60
    assert (wait.phase, wait.seconds, wait.slowest_seconds) == (None, 0, 5)


def test_each_step_of_an_opening_has_its_own_time() -> None:
    clock = Clock()
    wait = Wait(clock)
    for phase in (Phase.CONNECT, Phase.EHLO, Phase.AUTH):
        wait.begin(phase)
        clock.now += 4
    wait.end()
    assert wait.slowest_seconds == 4


def test_a_server_that_reads_a_body_bit_by_bit_is_not_slow() -> None:
    clock = Clock()
    wait = Wait(clock)
    with wait.during(Phase.BODY):
        for _ in range(10):
            clock.now += 3
            wait.go_on()
    wait.go_on()
    assert (wait.slowest_seconds, wait.phase) == (3, None)


def test_the_time_in_which_the_process_was_suspended_is_nobodys_fault() -> None:
    clock = Clock()
    awake = AwakeClock(clock)
    wait = Wait(awake)
    wait.begin(Phase.RCPT)
    for _ in range(8):
        clock.now += 0.25
        awake.tick()
    assert wait.seconds == 2
    clock.now += 3600
    assert wait.seconds == 3
    awake.tick()
    clock.now += 0.5
    assert wait.seconds == 3.5
