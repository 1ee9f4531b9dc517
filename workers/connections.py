"""The pool of connections to one server: capped, fair, lazy."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from campaigns.reply import Phase, SmtpResult, Stop
from workers.crowding import Crowding, is_too_many
from workers.deadlines import Deadlines
from workers.host import Host
from workers.smtp import SmtpConnection, SmtpFailure
from workers.wait import Wait

if TYPE_CHECKING:
    from campaigns.settings import Server

__all__ = ["IDLE_SECONDS", "ConnectionPool"]

_MOST_OPENING = 4
IDLE_SECONDS = 30.0
"""So long a connection stays open that nobody needs."""
_SPARED_SECONDS = 1.0
"""The same where the server takes fewer than were wanted: another process may be without any."""
_DOT_GRACE_SECONDS = 1.0
_DOT_ROOM = 4
_AGAIN_SECONDS = (0.2, 1.0)
"""Between two tries at a server that has too many connections; at random, for others try as well."""
_SHUT_OUT_SECONDS = 2.0
"""So long mail waits for a first connection to such a server; then it goes back in line."""
_GONE_SECONDS = 1.0
"""So long a server may count a connection that was closed."""


class ConnectionPool:
    """At most `size` connections to `server` that are idle, opening or busy. One event loop's.

    Two lists are its whole state. One that waits at its dot for longer than a moment counts no more, so that
    a server which is slow there starves nobody: one more is opened while fewer than four times `size` wait
    so, which makes fewer than five times `size` in all. A server that takes fewer says so, and is believed:
    then all that it may still count do count.
    """

    def __init__(
        self,
        server: Server,
        deadlines: Deadlines,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        dot_grace_seconds: float = _DOT_GRACE_SECONDS,
    ) -> None:
        self._server = server
        self._host = Host(server.host, server.port)
        self._deadlines = deadlines
        self._size = size
        self._clock = clock
        self._dot_grace_seconds = dot_grace_seconds
        self._idle: list[tuple[float, SmtpConnection]] = []
        self._busy: list[SmtpConnection] = []
        self._excused: set[SmtpConnection] = set()
        self._opening = 0  # slots taken whose connection is not known yet
        self._connecting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._door = asyncio.Semaphore(_MOST_OPENING)
        self._closing: set[asyncio.Task[None]] = set()
        self._closed_at = -_GONE_SECONDS
        self._crowding = Crowding(server.name, size * (1 + _DOT_ROOM), clock)
        self._is_closed = False

    def __repr__(self) -> str:
        at_dot = sum(connection.is_at_dot for connection in self._busy)
        busy = len(self._busy) - at_dot
        return (
            f"<ConnectionPool {self._server.name}: {len(self._idle)} idle, {busy} busy, {at_dot} at the dot>"
        )

    @property
    def server_name(self) -> str:
        return self._server.name

    @property
    def size(self) -> int:
        """How many connections it may have, as far as is known."""
        most = self._crowding.most
        return self._size if most is None else min(self._size, most)

    @property
    def shut_out_seconds(self) -> float:
        """For how long the server has refused each connection as one too many, while there was none here."""
        return self._crowding.shut_out_seconds

    @property
    def busy_count(self) -> int:
        """Connections that somebody has, or is opening; without those that wait long at their dot."""
        return self._opening + len(self._busy) - len(self._excused)

    async def acquire(self, wait: Wait | None = None, *, fresh: bool = False) -> SmtpConnection:
        """A connection that is usable, in the order of asking. Raises SmtpFailure when none can be opened.

        `fresh`: a new one in any case, for a second try after a `STALE` result. `wait` is told what the
        server is asked for, now and over the connection. Give that back with `release`.
        """
        wait = wait or Wait()
        connection = await self._acquire(fresh, wait)
        while connection is None:
            connection = await self._acquire(fresh, wait, is_first=True)
        connection.tell(wait)
        self._busy.append(connection)
        return connection

    async def _acquire(self, fresh: bool, wait: Wait, *, is_first: bool = False) -> SmtpConnection | None:
        """None: the server takes no more connections than there are, and it is to wait for one of these."""
        await (self._wait_again(fresh) if is_first else self._take_slot())
        try:
            connection = None if fresh else self._reuse()
            if connection is None:
                connection = await self._open(fresh, wait)
            if self._is_closed and connection is not None:
                connection.abort()
                raise SmtpFailure(_shut_down())
        except BaseException:
            self._opening -= 1
            self._wake_next()
            raise
        self._opening -= 1
        return connection

    async def _take_slot(self) -> None:
        if self._is_closed:
            raise SmtpFailure(_shut_down())
        if not self._waiting and self.has_room:
            self._opening += 1
            return
        ticket = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        await self._called(ticket)

    async def _wait_again(self, fresh: bool) -> None:
        """As the first in line; and for a moment, if nothing is free: whatever was learned of the server."""
        if self._is_closed:
            raise SmtpFailure(_shut_down())
        if self._idle and not fresh and self.has_room:
            self._opening += 1
            return
        loop = asyncio.get_running_loop()
        ticket = loop.create_future()
        self._waiting.appendleft(ticket)
        loop.call_later(random.uniform(*_AGAIN_SECONDS), self._wake_next)  # noqa: S311 - jitter
        await self._called(ticket)

    async def _called(self, ticket: asyncio.Future[None]) -> None:
        try:
            await ticket
        except BaseException:
            self._hand_on(ticket)
            raise

    def _hand_on(self, ticket: asyncio.Future[None]) -> None:
        """A waiter gave up: if it had been called already, its turn is the next one's."""
        if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
            self._opening -= 1
            self._wake_next()
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    @property
    def has_room(self) -> bool:
        """Whether another connection may be in use now."""
        waiting_at_dot = len(self._excused)
        has_room = self.busy_count < self._size and (waiting_at_dot < _DOT_ROOM * self._size)
        if self._crowding.most is None:
            return has_room
        return has_room and self._opening + len(self._busy) + len(self._closing) < self._crowding.most

    def _wake_next(self) -> None:
        while self._waiting and self.has_room:
            ticket = self._waiting.popleft()
            if not ticket.done():
                self._opening += 1
                ticket.set_result(None)

    def _reuse(self) -> SmtpConnection | None:
        while self._idle:
            _, connection = self._idle.pop()
            if connection.is_usable and not connection.has_expired(self._clock()):
                return connection
            self._dismiss(connection)
        return None

    async def _open(self, fresh: bool, wait: Wait) -> SmtpConnection | None:
        """A few at a time, so that a server which comes back is not stormed. None: it takes no more."""
        async with self._door:
            if not fresh and (connection := self._reuse()):
                return connection
            if fresh and self._counted >= self.size:
                await self.close_idle()
            if self._crowding.most is not None and self._counted >= self._crowding.most:
                return None
            self._connecting += 1
            try:
                return await self._dial(wait)
            finally:
                self._connecting -= 1

    async def _dial(self, wait: Wait) -> SmtpConnection | None:
        """None: the server has too many connections, and there are others here to wait for."""
        began = self._clock()
        while True:
            try:
                connection = await SmtpConnection.open(
                    self._server, self._deadlines, wait=wait, host=self._host
                )
            except SmtpFailure as failure:
                if self._is_closed or not is_too_many(failure.result):
                    raise
                now = self._clock()
                if not self._closing and now - self._closed_at >= _GONE_SECONDS:
                    self._crowding.refused(self._open_count)
                    if self._open_count:
                        return None
                    if now - began >= _SHUT_OUT_SECONDS:
                        self._turn_away(failure.result)
                        raise
                await asyncio.sleep(random.uniform(*_AGAIN_SECONDS))  # noqa: S311 - jitter
            else:
                self._crowding.took(self._open_count + 1)
                return connection

    @property
    def _open_count(self) -> int:
        return len(self._busy) + len(self._idle)

    @property
    def _counted(self) -> int:
        """All that the server may count."""
        return self._connecting + self._open_count + len(self._closing)

    def _turn_away(self, result: SmtpResult) -> None:
        """Nobody in line is to wait any longer."""
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_exception(SmtpFailure(result))

    def at_dot(self, connection: SmtpConnection) -> None:
        """The connection waits for the reply to its dot: after a moment its slot is free for another."""
        asyncio.get_running_loop().call_later(
            self._dot_grace_seconds, self._excuse, connection, connection.messages_sent
        )

    def _excuse(self, connection: SmtpConnection, message: int) -> None:
        same = connection.messages_sent == message
        if same and connection.is_at_dot and connection in self._busy:
            self._excused.add(connection)
            self._wake_next()

    def release(self, connection: SmtpConnection) -> None:
        """Give a connection back; one that is dead, expired or one too many is closed."""
        self._busy.remove(connection)
        self._excused.discard(connection)
        now = self._clock()
        others = self._connecting + len(self._busy) - len(self._excused) + len(self._idle)
        if self._is_closed or others >= self._size or connection.has_expired(now) or not connection.is_usable:
            self._dismiss(connection)
        else:
            self._idle.append((now, connection))
        self._wake_next()

    def _dismiss(self, connection: SmtpConnection) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(connection.close())
        self._closing.add(task)
        task.add_done_callback(self._gone)
        return task

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        self._closed_at = self._clock()
        if self._crowding.most is not None:
            self._wake_next()

    async def close_expired(self) -> None:
        """Close what is idle and old, dead, or not needed for a while: a short one if others may need it."""
        now = self._clock()
        idle_seconds = IDLE_SECONDS if self._crowding.most is None else _SPARED_SECONDS
        kept: list[tuple[float, SmtpConnection]] = []
        gone: list[tuple[float, SmtpConnection]] = []
        for since, connection in self._idle:
            good = connection.is_usable and not connection.has_expired(now) and now - since < idle_seconds
            (kept if good else gone).append((since, connection))
        self._idle = kept
        if self._crowding.grow():
            self._wake_next()
        await self._close(gone)

    async def close_idle(self) -> None:
        """Close what is idle: nothing more is to be sent there for now."""
        gone, self._idle = self._idle, []
        await self._close(gone)

    async def _close(self, gone: list[tuple[float, SmtpConnection]]) -> None:
        """Who is cancelled meanwhile leaves none of them open."""
        if gone:
            await asyncio.wait([self._dismiss(connection) for _, connection in gone])

    async def close_all(self) -> None:
        """Close what is idle; what is busy is closed at its release. Waiters get SmtpFailure (SHUTDOWN)."""
        self._is_closed = True
        self._turn_away(_shut_down())
        while self._idle:
            self._dismiss(self._idle.pop()[1])
        await asyncio.gather(*self._closing)


def _shut_down() -> SmtpResult:
    return SmtpResult(phase=Phase.CONNECT, reply=None, fault=None, dot_sent=False, stop=Stop.SHUTDOWN)
