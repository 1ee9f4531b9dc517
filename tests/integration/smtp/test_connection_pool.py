"""The pool: how many connections, for whom, for how long."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.reply import Fault, Phase, Stop
from tests.integration.smtp.trial import PATIENT, QUICK, Trial, configured, eventually
from workers.connections import ConnectionPool
from workers.smtp import SmtpFailure


class Clock:
    """Time that passes when we say so."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


MakePool = Callable[..., ConnectionPool]


@pytest.fixture
async def make_pool(server: ScriptedSmtpServer) -> AsyncIterator[MakePool]:
    pools: list[ConnectionPool] = []

    def make(size: int = 2, *, deadlines: object = PATIENT, **fields: object) -> ConnectionPool:
        given = {key: fields.pop(key) for key in ("clock", "dot_grace_seconds") if key in fields}
        pools.append(ConnectionPool(configured(server, **fields), deadlines, size, **given))  # type: ignore[arg-type]
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close_all()


async def test_connections_are_opened_when_they_are_needed_and_used_again(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(size=5)
    assert repr(pool) == "<ConnectionPool primary: 0 idle, 0 busy, 0 at the dot>"
    for _ in range(10):
        connection = await pool.acquire()
        assert (await Trial().over(connection)).ok
        assert repr(pool) == "<ConnectionPool primary: 0 idle, 1 busy, 0 at the dot>"
        pool.release(connection)
    assert repr(pool) == "<ConnectionPool primary: 1 idle, 0 busy, 0 at the dot>"
    assert server.stats["connections"] == 1 and len(server.records()) == 10


async def test_no_more_than_its_size_and_first_come_first_served(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(size=2)
    first, second = await pool.acquire(), await pool.acquire()
    served: list[int] = []

    async def customer(number: int) -> None:
        connection = await pool.acquire()
        served.append(number)
        pool.release(connection)

    waiting = [asyncio.ensure_future(customer(number)) for number in range(6)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    pool.release(first)
    pool.release(second)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert served == [0, 2, 3, 4, 5]
    assert server.stats["connections"] == 2
    assert repr(pool) == "<ConnectionPool primary: 2 idle, 0 busy, 0 at the dot>"


async def test_a_waiter_cancelled_in_the_moment_it_is_called_passes_its_turn_on(make_pool: MakePool) -> None:
    pool = make_pool(size=1)
    connection = await pool.acquire()
    called, next_one = (asyncio.ensure_future(pool.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    pool.release(connection)
    called.cancel()
    assert await next_one is connection
    pool.release(connection)
    assert repr(pool) == "<ConnectionPool primary: 1 idle, 0 busy, 0 at the dot>"


async def test_a_hundred_customers_a_third_of_them_cancelled_leave_the_pool_whole(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(size=3)

    async def customer(number: int) -> bool:
        connection = await pool.acquire()
        try:
            return (await Trial(recipient=f"bob+{number}@example.net").over(connection)).ok
        finally:
            pool.release(connection)

    customers = [asyncio.ensure_future(customer(number)) for number in range(100)]
    for number, each in enumerate(customers):
        if number % 3 == 0:
            asyncio.get_running_loop().call_later(number / 2000, each.cancel)
    results = await asyncio.gather(*customers, return_exceptions=True)
    assert sum(result is True for result in results) >= 66
    assert all(result is True or isinstance(result, asyncio.CancelledError) for result in results)
    assert "0 busy, 0 at the dot" in repr(pool)
    held = [await asyncio.wait_for(pool.acquire(), 10) for _ in range(3)]
    for connection in held:
        pool.release(connection)


async def test_a_failed_connection_frees_its_place(server: ScriptedSmtpServer, make_pool: MakePool) -> None:
    pool = make_pool(size=1)
    await server.refuse()
    for _ in range(3):
        with pytest.raises(SmtpFailure) as caught:
            await pool.acquire()
        assert (caught.value.result.phase, caught.value.result.fault) == (Phase.CONNECT, Fault.REFUSED)
    await server.listen()
    assert (await pool.acquire()).is_usable


async def test_a_dead_server_is_not_stormed(server: ScriptedSmtpServer, make_pool: MakePool) -> None:
    server.set("greeting", "stall")
    pool = make_pool(size=50, deadlines=PATIENT)
    customers = [asyncio.ensure_future(pool.acquire()) for _ in range(50)]
    await eventually(lambda: server.stats["connections"] >= 4)
    for _ in range(50):
        await asyncio.sleep(0)
    assert server.stats["connections"] == 4
    for customer in customers:
        customer.cancel()
    await asyncio.gather(*customers, return_exceptions=True)
    server.clear()
    assert (await pool.acquire()).is_usable


async def test_a_connection_closed_while_idle_is_replaced(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool()
    first = await pool.acquire()
    pool.release(first)
    server.disconnect()
    await eventually(lambda: not server.sessions)
    second = await pool.acquire()
    assert second is not first and second.is_usable


async def test_a_fresh_connection_is_not_an_idle_one(server: ScriptedSmtpServer, make_pool: MakePool) -> None:
    pool = make_pool(size=1)
    first = await pool.acquire()
    pool.release(first)
    second = await pool.acquire(fresh=True)
    assert second is not first
    pool.release(second)
    await eventually(lambda: len(server.sessions) == 1)
    assert repr(pool) == "<ConnectionPool primary: 1 idle, 0 busy, 0 at the dot>"


async def test_a_connection_retires_after_so_many_messages(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(max_messages_per_connection=3)
    for _ in range(7):
        connection = await pool.acquire()
        assert (await Trial().over(connection)).ok
        pool.release(connection)
    assert server.stats["connections"] == 3
    await eventually(lambda: server.stats["commands.quit"] == 2)


async def test_a_connection_retires_by_age_and_when_nobody_needs_it(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    clock = Clock()
    pool = make_pool(clock=clock)
    pool.release(await pool.acquire())
    clock.now += 29
    await pool.close_expired()
    assert "1 idle" in repr(pool)
    clock.now += 2
    await pool.close_expired()
    assert "0 idle" in repr(pool)
    pool.release(await pool.acquire())
    clock.now += 301
    pool.release(await pool.acquire())
    await eventually(lambda: server.stats["commands.quit"] == 3)
    assert server.stats["connections"] == 3


async def test_one_that_waits_at_its_dot_frees_its_place(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    server.set("dot", "stall", times=1)
    pool = make_pool(size=1, dot_grace_seconds=0.01)
    slow = await pool.acquire()
    trial = Trial()
    sending = asyncio.ensure_future(trial.over(slow))
    await eventually(lambda: slow.is_at_dot)
    assert repr(pool) == "<ConnectionPool primary: 0 idle, 0 busy, 1 at the dot>"
    pool.at_dot(slow)
    other = await asyncio.wait_for(pool.acquire(), 10)
    assert repr(pool) == "<ConnectionPool primary: 0 idle, 1 busy, 1 at the dot>"
    assert (await Trial().over(other)).ok
    third = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.05)
    assert not third.done()
    pool.release(other)
    pool.release(await third)
    server.disconnect()
    assert (await sending).fault is Fault.CLOSED
    pool.release(slow)
    assert "0 busy, 0 at the dot" in repr(pool)


async def test_a_moment_at_the_dot_frees_no_place(server: ScriptedSmtpServer, make_pool: MakePool) -> None:
    """Otherwise every server would see many more connections than were configured."""
    server.set("dot", "stall", times=1)
    pool = make_pool(size=1, dot_grace_seconds=60, deadlines=QUICK)
    connection = await pool.acquire()
    sending = asyncio.ensure_future(Trial().over(connection))
    await eventually(lambda: connection.is_at_dot)
    pool.at_dot(connection)
    waiting = asyncio.ensure_future(pool.acquire())
    assert (await sending).fault is Fault.TIMEOUT
    assert not waiting.done()
    pool.release(connection)
    assert (await waiting).is_usable
    assert server.stats["connections"] == 2


async def test_only_so_many_may_wait_at_their_dots(server: ScriptedSmtpServer, make_pool: MakePool) -> None:
    server.set("dot", "stall")
    pool = make_pool(size=1, dot_grace_seconds=0)
    held = []
    for _ in range(4):
        connection = await asyncio.wait_for(pool.acquire(), 10)
        held.append((connection, asyncio.ensure_future(Trial().over(connection))))
        await eventually(lambda connection=connection: connection.is_at_dot)  # type: ignore[misc]
        pool.at_dot(connection)
    fifth = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.1)
    assert not fifth.done()
    assert repr(pool) == "<ConnectionPool primary: 0 idle, 0 busy, 4 at the dot>"
    server.disconnect()
    for connection, sending in held:
        assert (await sending).fault is Fault.CLOSED
        pool.release(connection)
    pool.release(await fifth)
    assert repr(pool) == "<ConnectionPool primary: 1 idle, 0 busy, 0 at the dot>"


async def test_while_replies_to_the_dot_are_late_there_are_fewer_than_five_times_as_many(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    server.set("dot", "stall")
    pool = make_pool(size=2, dot_grace_seconds=0)
    held, sending = [await pool.acquire()], []
    for _ in range(7):
        connection = await asyncio.wait_for(pool.acquire(), 10)
        held.append(connection)
        sending.append(asyncio.ensure_future(Trial().over(connection)))
        await eventually(lambda connection=connection: connection.is_at_dot)  # type: ignore[misc]
        pool.at_dot(connection)
    held.append(await asyncio.wait_for(pool.acquire(), 10))
    assert (len(held), pool.has_room) == (5 * 2 - 1, False)
    server.disconnect()
    await asyncio.gather(*sending)
    for connection in held:
        pool.release(connection)


async def test_closing_ends_what_is_idle_refuses_who_waits_and_lets_the_busy_finish(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(size=2)
    busy, idle = await pool.acquire(), await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    waiting_too = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    pool.release(idle)
    assert await waiting is idle
    pool.release(idle)
    assert await waiting_too is idle
    last = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    await pool.close_all()
    for late in (last, asyncio.ensure_future(pool.acquire())):
        with pytest.raises(SmtpFailure) as caught:
            await late
        assert caught.value.result.stop is Stop.SHUTDOWN
    assert (await Trial().over(busy)).ok
    pool.release(busy)
    pool.release(idle)
    await pool.close_all()
    await eventually(lambda: not server.sessions)
    assert server.stats["commands.quit"] == 2


async def test_a_server_that_is_not_needed_keeps_no_idle_connection(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    pool = make_pool(size=3)
    first, second = await pool.acquire(), await pool.acquire()
    pool.release(first)
    await pool.close_idle()
    assert repr(pool) == "<ConnectionPool primary: 0 idle, 1 busy, 0 at the dot>"
    await eventually(lambda: server.stats["commands.quit"] == 1)
    assert (await Trial().over(second)).ok
    pool.release(second)
    assert (await pool.acquire()) is second


async def served(pool: ConnectionPool, count: int) -> list[bool]:
    """So many mails at once."""

    async def customer(number: int) -> bool:
        connection = await pool.acquire()
        try:
            return (await Trial(recipient=f"bob+{number}@example.net").over(connection)).ok
        finally:
            pool.release(connection)

    return await asyncio.gather(*(customer(number) for number in range(count)))


async def test_a_server_that_takes_fewer_connections_is_believed_and_costs_no_mail(
    server: ScriptedSmtpServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    server.most_connections = 5
    pool = make_pool(size=20, max_messages_per_connection=7)
    assert all(await asyncio.wait_for(served(pool, 300), 30))
    assert 1 <= pool.size <= 5
    assert server.stats["refused"] < 40
    told = [record for record in caplog.records if "refuses more connections" in record.getMessage()]
    assert told and len(told) <= 5


async def test_a_learned_number_of_connections_grows_by_one_a_minute(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    clock = Clock()
    server.most_connections = 2
    pool = make_pool(size=4, clock=clock)
    assert pool.size == 4
    held = [await pool.acquire(), await pool.acquire()]
    waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
    await eventually(lambda: server.stats["refused"] >= 1 and pool.size == 2)
    clock.now += 59
    await pool.close_expired()
    assert pool.size == 2
    refused = server.stats["refused"]
    clock.now += 2
    await pool.close_expired()
    await eventually(lambda: server.stats["refused"] == refused + 1)
    await eventually(lambda: pool.size == 2)
    assert not any(one.done() for one in waiting), "they wait, and fail not"
    server.most_connections = None
    for _ in range(2):
        clock.now += 61
        await pool.close_expired()
        await asyncio.sleep(0.1)
    held += await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert len(server.sessions) == pool.size == 4
    for connection in held:
        pool.release(connection)


async def test_who_was_refused_is_the_first_to_have_a_connection_that_is_free(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    server.most_connections = 1
    pool = make_pool(size=5)
    held = await pool.acquire()
    refused = asyncio.ensure_future(pool.acquire())
    await eventually(lambda: pool.size == 1)
    later = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    pool.release(held)
    assert await asyncio.wait_for(refused, 10) is held
    assert not later.done()
    pool.release(held)
    assert await asyncio.wait_for(later, 10) is held
    pool.release(held)


async def test_where_others_have_all_connections_one_asks_for_a_while_and_then_all_go_back(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    server.most_connections = 0
    pool = make_pool(size=20)
    began = time.monotonic()
    results = await asyncio.gather(*(pool.acquire() for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, SmtpFailure) for result in results)
    assert 1.5 < time.monotonic() - began < 5
    assert 1.5 < pool.shut_out_seconds < 5
    assert server.stats["refused"] < 120, "it is not stormed"
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.1)
    server.most_connections = None
    connection = await asyncio.wait_for(waiting, 10)
    assert pool.shut_out_seconds == 0 and pool.size == 20
    pool.release(connection)


async def test_a_fresh_connection_takes_the_place_of_an_idle_one_where_there_are_no_more(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    server.most_connections = 2
    pool = make_pool(size=5)
    held = [await pool.acquire(), await pool.acquire()]
    third = asyncio.ensure_future(pool.acquire())
    await eventually(lambda: pool.size == 2)
    pool.release(held[0])
    pool.release(await asyncio.wait_for(third, 10))
    fresh = await asyncio.wait_for(pool.acquire(fresh=True), 10)
    assert fresh not in held and fresh.is_usable
    pool.release(fresh)
    pool.release(held[1])


@pytest.mark.parametrize("most", [2, 5])
async def test_a_server_that_is_slow_at_the_dot_and_takes_no_more_is_not_stormed(
    server: ScriptedSmtpServer, make_pool: MakePool, most: int
) -> None:
    """It takes all that are configured, and not those that are opened while replies are late."""
    server.most_connections = most
    server.set("dot", "delay", seconds=1.5)
    pool = make_pool(size=2, dot_grace_seconds=0.02)

    async def customer(number: int) -> bool:
        connection = await pool.acquire()
        try:
            sending = asyncio.ensure_future(Trial(recipient=f"bob+{number}@example.net").over(connection))
            await eventually(lambda: connection.is_at_dot)
            pool.at_dot(connection)
            return (await sending).ok
        finally:
            pool.release(connection)

    customers = asyncio.gather(*(customer(number) for number in range(most + 3)))
    await eventually(lambda: server.stats["refused"] >= 1 and f"{most} at the dot" in repr(pool))
    await asyncio.sleep(0.1)
    assert (pool.size, pool.has_room) == (2, False), "it waits for those that are open"
    assert all(await asyncio.wait_for(customers, 20))
    assert server.stats["refused"] < 10


async def test_whatever_was_learned_of_a_refusal_nobody_dials_again_at_once(
    server: ScriptedSmtpServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.most_connections = 1
    pool = make_pool(size=3)
    monkeypatch.setattr(pool._crowding, "refused", lambda _: None)
    held = await pool.acquire()
    waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
    await asyncio.sleep(1)
    assert 2 <= server.stats["refused"] < 20
    began = time.monotonic()
    pool.release(held)
    (given,), _ = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert given.result() is held
    assert time.monotonic() - began < 0.2, "who waits is called"
    pool.release(held)
    assert await asyncio.wait_for(next(one for one in waiting if one is not given), 10) is held
    pool.release(held)


async def test_a_fresh_connection_takes_the_place_of_an_idle_one_where_there_are_all_that_may_be(
    server: ScriptedSmtpServer, make_pool: MakePool
) -> None:
    """The server takes just as many as are configured: it never said so."""
    server.most_connections = 1
    pool = make_pool(size=1)
    for _ in range(3):
        pool.release(await pool.acquire())
        pool.release(await asyncio.wait_for(pool.acquire(fresh=True), 5))
    assert server.stats["refused"] < 8


async def test_who_is_cancelled_while_idle_ones_are_closed_for_it_leaves_none_open(
    server: ScriptedSmtpServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(size=1)
    idle = await pool.acquire()
    pool.release(idle)
    close = idle.close

    async def close_slowly() -> None:
        await asyncio.sleep(0.3)
        await close()

    monkeypatch.setattr(idle, "close", close_slowly)
    asking = asyncio.ensure_future(pool.acquire(fresh=True))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.wait({asking})
    assert server.stats["connections"] == 1
    await eventually(lambda: not server.sessions, seconds=5)
