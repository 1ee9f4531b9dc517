"""Names that are looked up: slowly, once at a time, and of no consequence to another server."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.reply import Fault, Phase
from tests.integration.smtp.trial import PATIENT, QUICK, Trial, configured
from workers import host as host_module
from workers.connections import ConnectionPool
from workers.host import Host
from workers.smtp import SmtpConnection, SmtpFailure


class Dns:
    """Finds `addresses`, once it may."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self.addresses = addresses
        self.asked = 0
        self.may_answer = threading.Event()

    def __call__(self, name: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked += 1
        self.may_answer.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in self.addresses]


@pytest.fixture
def dns(server: ScriptedSmtpServer) -> Iterator[Dns]:
    dns = Dns((server.host, server.port))
    yield dns
    dns.may_answer.set()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_who_asks_during_a_lookup_is_given_what_that_finds(dns: Dns) -> None:
    host = Host("mx.example", 25, dns)
    asking = [asyncio.ensure_future(host.connect(10)) for _ in range(3)]
    await asyncio.sleep(0.05)
    asking[0].cancel()
    with pytest.raises(TimeoutError, match=r"^Timed out connecting to mx\.example on port 25$"):
        await host.connect(0.05)
    late = asyncio.ensure_future(host.connect(10))
    await asyncio.sleep(0)
    dns.may_answer.set()
    for connection in await asyncio.gather(*asking[1:], late):
        connection.close()
    assert dns.asked == 1
    (await host.connect(10)).close()
    assert dns.asked == 2, "what was found is not kept"


async def test_a_server_whose_lookup_hangs_is_of_no_consequence_to_another(
    server: ScriptedSmtpServer, dns: Dns
) -> None:
    hanging = ConnectionPool(configured(server, host="mx.example"), QUICK, 10)
    hanging._host._look_up = dns
    well = ConnectionPool(configured(server, host="localhost"), PATIENT, 10)
    waiting = asyncio.gather(*(hanging.acquire() for _ in range(10)), return_exceptions=True)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    connection = await well.acquire()
    assert time.monotonic() - began < 5
    assert (await Trial().over(connection)).ok
    well.release(connection)
    for failure in await waiting:
        assert isinstance(failure, SmtpFailure)
        assert (failure.result.phase, failure.result.fault) == (Phase.CONNECT, Fault.TIMEOUT)
    assert dns.asked == 1, "nor does it take more than one thread"
    await hanging.close_all()
    await well.close_all()


async def test_each_address_is_tried_in_its_order(server: ScriptedSmtpServer, dns: Dns) -> None:
    dns.may_answer.set()
    dns.addresses = (("127.0.0.1", closed_port()), (server.host, server.port))
    with await Host("mx.example", 25, dns).connect(10) as connection:
        assert connection.getpeername() == (server.host, server.port)
    dns.addresses = (("127.0.0.1", closed_port()),) * 2
    with pytest.raises(ConnectionRefusedError):
        await Host("mx.example", 25, dns).connect(10)


async def test_an_address_that_swallows_all_leaves_time_for_the_next(
    server: ScriptedSmtpServer, dns: Dns
) -> None:
    dns.may_answer.set()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        held = [await asyncio.to_thread(socket.create_connection, full.getsockname())]
        dns.addresses = (full.getsockname(), (server.host, server.port))
        host = Host("mx.example", 25, dns)
        held += [await host.connect(1.0) for _ in range(4)]
        assert held[-1].getpeername() == (server.host, server.port)
        for connection in held:
            connection.close()


async def test_one_of_many_addresses_has_time_enough_to_answer(
    dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns.may_answer.set()
    dns.addresses = tuple(("127.0.0.1", port) for port in range(2000, 2020))
    with socket.socket() as found:

        async def far_away(*_: object) -> socket.socket:
            await asyncio.sleep(0.3)
            return found

        monkeypatch.setattr(host_module, "_connected", far_away)
        assert await Host("mx.example", 25, dns).connect(2.0) is found


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("identity", ["localhost", "127.0.0.1"])
async def test_a_certificate_must_have_the_name_that_is_configured_not_its_address(
    tmp_path: Path, authority: trustme.CA, ca_file: Path, tls: Any, identity: str
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(identity).configure_cert(context)
    async with ScriptedSmtpServer(tmp_path / "accepted.jsonl", tls=tls, ssl_context=context) as server:
        named = configured(server, host="localhost", tls=tls, ca_file=ca_file)
        if identity == "localhost":
            connection = await SmtpConnection.open(named, PATIENT)
            assert (await Trial().over(connection)).ok
            await connection.close()
        else:
            with pytest.raises(SmtpFailure) as caught:
                await SmtpConnection.open(named, PATIENT)
            assert caught.value.result.fault is Fault.TLS


async def test_a_loop_that_is_closed_is_told_nothing(dns: Dns) -> None:
    def ask() -> None:
        with pytest.raises(TimeoutError):
            asyncio.run(Host("mx.example", 25, dns).connect(0.05))

    await asyncio.to_thread(ask)
    dns.may_answer.set()
    await asyncio.sleep(0.1)
