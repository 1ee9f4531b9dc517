"""Our own eyes on an SMTP connection: every byte the server says is kept, and when it hangs up is seen."""

from __future__ import annotations

import asyncio
import select
import socket

from campaigns.reply import Fault
from workers.reply_reader import RawReply, ReplyReader
from workers.wait import Wait

__all__ = ["Dialogue"]

_CHUNK_OCTETS = 262_144
_UNSENT_OCTETS = 1
_UNSENT_LOOK_SECONDS = 0.01
_PEEK_ROUNDS = 4


class Dialogue(asyncio.Protocol):
    """The client's side of the dialogue once the connection is open.

    aiosmtplib discards what a server says while no command is pending; this keeps it, so that a 552 in
    mid-body is seen before the dot is written.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.wait = Wait()
        """Told what the server is asked for by whoever asks."""
        self._loop = loop
        self._transport = transport
        self._reader = ReplyReader()
        self._waiter: asyncio.Future[bool] | None = None
        self._paused = False
        self._ended = False
        self._poll = select.poll()
        transport.set_protocol(self)
        self._tune()

    def _tune(self) -> None:
        # A write counts as drained when the kernel has all of it. (With 0, the TLS layer never resumes.)
        over_tls = self._transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if over_tls else 0)
        connection = self._transport.get_extra_info("socket")
        self._poll.register(connection.fileno(), select.POLLIN | select.POLLOUT)
        if connection.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # Writable means then that all is on the wire. Otherwise megabytes vanish in the kernel, and a
            # server that reads nothing looks like a fast one.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_OCTETS)

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def _wake(self, in_time: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(in_time)

    # What is asked.

    @property
    def has_ended(self) -> bool:
        """The server hung up, or we did."""
        return self._ended or self._transport.is_closing()

    @property
    def was_interrupted(self) -> bool:
        """The server said something that nobody asked for, or hung up."""
        return self._reader.has_bytes or self.has_ended

    @property
    def has_unread(self) -> bool:
        """Something waits in the kernel: bytes, or the end. Over TLS these may be bytes that are no data."""
        return not self.has_ended and bool(self._kernel_events() & ~select.POLLOUT)

    def _kernel_events(self) -> int:
        return next((events for _, events in self._poll.poll(0)), 0)

    async def look(self) -> None:
        """Read what has arrived already, so that `was_interrupted` speaks of now."""
        for _ in range(_PEEK_ROUNDS):
            if self.was_interrupted or not self.has_unread:
                return
            await asyncio.sleep(0)

    def write(self, data: bytes) -> None:
        """Write a line; what comes of it shows in the reply. uvloop raises where the transport is closed."""
        if not self.has_ended:
            self._transport.write(data)

    async def reply(self, seconds: float) -> RawReply | Fault:
        """The next whole reply within `seconds`; GARBAGE, OVERSIZED, CLOSED or TIMEOUT otherwise."""
        deadline = self._loop.time() + seconds
        in_time = True
        while True:
            said = self._reader.take()
            if said is not None:
                return said
            if self._ended:
                return Fault.CLOSED
            if not in_time:
                return Fault.TIMEOUT
            in_time = await self._event(deadline)
            if not in_time:
                await self._read_arrived()

    async def arrived(self) -> RawReply | Fault | None:
        """The next whole reply if it has arrived already."""
        await self._read_arrived()
        return self._reader.take()

    async def _read_arrived(self) -> None:
        """A process that was stopped, or very busy, finds its deadline passed and the reply in the kernel."""
        for _ in range(_PEEK_ROUNDS):
            if not self.has_unread:
                return
            await asyncio.sleep(0)

    async def write_body(self, body: bytes, seconds: float) -> Fault | None:
        """Write all of it and wait until it is on the wire. None also when the server interrupted: look.

        A server that does not read is a TIMEOUT after `seconds`.
        """
        deadline = self._loop.time() + seconds
        view = memoryview(body)
        for start in range(0, len(body), _CHUNK_OCTETS):
            if self.was_interrupted:
                return None
            self._transport.write(view[start : start + _CHUNK_OCTETS])
            while self._paused and not self.was_interrupted:
                if not await self._event(deadline):
                    return Fault.TIMEOUT
            self.wait.go_on()
        return await self._until_on_the_wire(deadline)

    async def _until_on_the_wire(self, deadline: float) -> Fault | None:
        """A closed window may hold back the kernel's last piece; no loop can wait for that, so look again."""
        while not self.was_interrupted and not self._kernel_events():
            if self._loop.time() >= deadline:
                return Fault.TIMEOUT
            await self._event(min(deadline, self._loop.time() + _UNSENT_LOOK_SECONDS))
        return None

    async def _event(self, deadline: float) -> bool:
        """Wait until something happens; False at the deadline."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_at(deadline, self._wake, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def abort(self) -> None:
        """Drop the connection at once, unsent bytes with it."""
        self._ended = True
        self._transport.abort()

    def close(self) -> None:
        """Close in order: what was written goes out first."""
        self._ended = True
        self._transport.close()
