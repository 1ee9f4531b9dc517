"""The bad network does to real connections what it says."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.proxy import BOTH, TO_CLIENT, TO_SERVER, BadNetwork


class Echo:
    """Sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.got = b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection):
            try:
                while piece := connection.recv(4096):
                    self.got += piece
                    connection.sendall(piece)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture
def network(echo: Echo) -> Iterator[BadNetwork]:
    with BadNetwork(echo.port) as network:
        yield network


@pytest.fixture
def client(network: BadNetwork) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", network.port), timeout=5) as connection:
        yield connection


def _asked(client: socket.socket, words: bytes = b"hello") -> bytes:
    client.sendall(words)
    return client.recv(4096)


def _is_silent(client: socket.socket) -> bool:
    client.settimeout(0.3)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_in_good_weather_all_arrives(client: socket.socket) -> None:
    assert _asked(client) == b"hello"


def test_a_partition_holds_everything_and_its_end_loses_nothing(
    network: BadNetwork, client: socket.socket
) -> None:
    assert _asked(client) == b"hello"
    network.be(held=BOTH)
    client.sendall(b"again")
    assert _is_silent(client)
    network.heal()
    assert client.recv(4096) == b"again"


@pytest.mark.parametrize(("direction", "arrives"), [(TO_CLIENT, b"hello"), (TO_SERVER, b"")])
def test_one_direction_may_be_lost(
    network: BadNetwork, client: socket.socket, echo: Echo, direction: str, arrives: bytes
) -> None:
    network.be(lost=frozenset({direction}))
    client.sendall(b"hello")
    assert _is_silent(client)
    assert echo.got == arrives


def test_latency_is_felt_in_both_directions(network: BadNetwork, client: socket.socket) -> None:
    network.be(latency_seconds=0.2)
    start = time.monotonic()
    assert _asked(client) == b"hello"
    assert time.monotonic() - start >= 0.4


def test_a_narrow_network_takes_its_time(network: BadNetwork, client: socket.socket) -> None:
    network.be(octets_per_second=50)
    start = time.monotonic()
    assert _asked(client, b"x" * 10) == b"x" * 10
    assert time.monotonic() - start >= 0.4


def test_a_stream_is_cut_at_the_given_octet(network: BadNetwork, client: socket.socket, echo: Echo) -> None:
    network.be(cut=TO_SERVER, cut_at=3)
    client.sendall(b"hello")
    with pytest.raises(ConnectionError):
        client.recv(1)
    deadline = time.monotonic() + 2
    while echo.got != b"hel" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert echo.got == b"hel"


def test_a_reset_is_a_reset(network: BadNetwork, client: socket.socket) -> None:
    assert _asked(client) == b"hello"
    network.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_an_answer_is_kept_back_and_the_question_arrives(
    network: BadNetwork, client: socket.socket, echo: Echo
) -> None:
    network.be(unanswered=b"COMMIT")
    assert _asked(client, b"BEGIN") == b"BEGIN"
    with pytest.raises(ConnectionResetError):
        _asked(client, b"COMMIT")
    assert echo.got == b"BEGINCOMMIT"
    assert network.unanswered == 1
    with socket.create_connection(("127.0.0.1", network.port), timeout=5) as second:
        assert _asked(second, b"COMMIT") == b"COMMIT", "only as often as was asked for"


def test_connections_may_be_refused(network: BadNetwork) -> None:
    network.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", network.port), timeout=5)
    network.listen()
    with socket.create_connection(("127.0.0.1", network.port), timeout=5) as client:
        assert _asked(client) == b"hello"
