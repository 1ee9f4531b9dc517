"""What a worker says it could send."""

from workers.load import LoadMeter


class Clocks:
    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 5.0


def beaten(
    meter: LoadMeter, clocks: Clocks, *, sent: int, busy: int, cpu: float
) -> tuple[float, float | None]:
    for _ in range(sent):
        meter.sent("primary")
    for _ in range(8):
        meter.look("primary", busy, 20)
    clocks.now += 2.0
    clocks.cpu += cpu
    return meter.beat()["primary"]


def meter_of(clocks: Clocks) -> LoadMeter:
    return LoadMeter(monotonic=lambda: clocks.now, cpu_seconds=lambda: clocks.cpu)


def test_a_server_whose_connections_are_all_busy_can_do_no_more() -> None:
    clocks = Clocks()
    assert beaten(meter_of(clocks), clocks, sent=20, busy=20, cpu=0.1) == (10.0, 10.0)


def test_half_idle_connections_could_send_twice_as_much() -> None:
    clocks = Clocks()
    assert beaten(meter_of(clocks), clocks, sent=200, busy=10, cpu=0.2) == (100.0, 200.0)


def test_the_processor_is_a_limit_too() -> None:
    clocks = Clocks()
    assert beaten(meter_of(clocks), clocks, sent=600, busy=5, cpu=1.5) == (300.0, 400.0)


def test_connections_that_are_busy_without_sending_can_do_nothing() -> None:
    clocks = Clocks()
    meter = meter_of(clocks)
    assert beaten(meter, clocks, sent=0, busy=20, cpu=0.0) == (0.0, 0.0)


def test_an_idle_server_is_remembered_as_it_was() -> None:
    clocks = Clocks()
    meter = meter_of(clocks)
    assert beaten(meter, clocks, sent=200, busy=10, cpu=0.2) == (100.0, 200.0)
    assert beaten(meter, clocks, sent=0, busy=0, cpu=0.0) == (0.0, 200.0)


def test_nothing_is_known_before_anything_was_sent() -> None:
    clocks = Clocks()
    assert beaten(meter_of(clocks), clocks, sent=0, busy=0, cpu=0.0) == (0.0, None)
