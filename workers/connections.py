"""The pool of connections to one server: capped, fair, lazy."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from campaigns.reply import Phase, SmtpResult, Stop
from workers.deadlines import Deadlines
from workers.smtp import SmtpConnection, SmtpFailure
from workers.wait import Wait

if TYPE_CHECKING:
    from campaigns.settings import Server

__all__ = ["ConnectionPool"]

_MOST_OPENING = 4
_IDLE_SECONDS = 30.0
_DOT_GRACE_SECONDS = 1.0
_DOT_ROOM = 4


class ConnectionPool:
    """At most `size` connections to `server` that are idle, opening or busy. One event loop's.

    Two lists are its whole state. One that waits at its dot for longer than a moment counts no more, so that
    a server which is slow there starves nobody; but no more than four times `size` may wait so.
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
        return self._size

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
        await self._take_slot()
        try:
            connection = None if fresh else self._reuse()
            if connection is None:
                connection = await self._open(fresh, wait)
            if self._is_closed:
                connection.abort()
                raise SmtpFailure(_shut_down())
        except BaseException:
            self._opening -= 1
            self._wake_next()
            raise
        self._opening -= 1
        connection.tell(wait)
        self._busy.append(connection)
        return connection

    async def _take_slot(self) -> None:
        if self._is_closed:
            raise SmtpFailure(_shut_down())
        if not self._waiting and self.has_room:
            self._opening += 1
            return
        ticket = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
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
        return self.busy_count < self._size and (waiting_at_dot < _DOT_ROOM * self._size)

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

    async def _open(self, fresh: bool, wait: Wait) -> SmtpConnection:
        """A few at a time, so that a server which comes back is not stormed."""
        async with self._door:
            if not fresh and (connection := self._reuse()):
                return connection
            self._connecting += 1
            try:
                return await SmtpConnection.open(self._server, self._deadlines, wait=wait)
            finally:
                self._connecting -= 1

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

    def _dismiss(self, connection: SmtpConnection) -> None:
        task = asyncio.get_running_loop().create_task(connection.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close_expired(self) -> None:
        """Close what is idle and old, dead, or not needed for half a minute."""
        now = self._clock()
        kept: list[tuple[float, SmtpConnection]] = []
        gone: list[tuple[float, SmtpConnection]] = []
        for since, connection in self._idle:
            good = connection.is_usable and not connection.has_expired(now) and now - since < _IDLE_SECONDS
            (kept if good else gone).append((since, connection))
        self._idle = kept
        await asyncio.gather(*(connection.close() for _, connection in gone))

    async def close_idle(self) -> None:
        """Close what is idle: nothing more is to be sent there for now."""
        gone, self._idle = self._idle, []
        await asyncio.gather(*(connection.close() for _, connection in gone))

    async def close_all(self) -> None:
        """Close what is idle; what is busy is closed at its release. Waiters get SmtpFailure (SHUTDOWN)."""
        self._is_closed = True
        while self._waiting:
            ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_exception(SmtpFailure(_shut_down()))
        while self._idle:
            self._dismiss(self._idle.pop()[1])
        await asyncio.gather(*self._closing)


def _shut_down() -> SmtpResult:
    return SmtpResult(phase=Phase.CONNECT, reply=None, fault=None, dot_sent=False, stop=Stop.SHUTDOWN)
