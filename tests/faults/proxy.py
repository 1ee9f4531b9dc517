"""A TCP proxy that is a bad network: slow, narrow, silent, one-sided, or cut in mid-stream.

It runs in a thread of its own, so that a test may change its mind at any time:

    with BadNetwork(5432) as network:
        network.be(latency_seconds=0.1)
        network.be(held=BOTH)      # a partition: nothing passes, nobody is told; `heal` lets it through
        network.reset()            # RST on every open connection
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["BOTH", "TO_CLIENT", "TO_SERVER", "BadNetwork", "Weather"]

TO_SERVER = "to the server"
TO_CLIENT = "to the client"
BOTH = frozenset({TO_SERVER, TO_CLIENT})
_CHUNK_OCTETS = 65536
_START_SECONDS = 5.0
_REPLY_SECONDS = 5.0
_LINGER_NOT = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What the network does. Directions are `TO_SERVER` and `TO_CLIENT`.

    `held`: bytes wait and go on after the healing, as TCP does it after a partition; `lost`: bytes vanish.
    `cut_at`: the connection is reset when so many octets of the direction `cut` have passed.
    `unanswered`: what the server answers to a piece with these bytes is kept back, and the connection reset;
    so often as `unanswered_times` says.
    """

    latency_seconds: float = 0.0
    octets_per_second: float | None = None
    held: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    cut: str = TO_SERVER
    cut_at: int | None = None
    unanswered: bytes | None = None
    unanswered_times: int = 1


class BadNetwork:
    """Listens on a port of its own and passes on to `target_port` of this machine."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.weather = Weather()
        self.connections = 0
        self.unanswered = 0
        """How often an answer was kept back."""
        self.met: Counter[str] = Counter()
        """How often somebody met what `be` asked for, by the field of the `Weather`; and `reset`."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-network", daemon=True)
        self._clear = asyncio.Event()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<BadNetwork {self.port} -> {self.target_port}: {len(self._open)} open, {self.weather}>"

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()

    def be(self, **weather: Any) -> None:
        """Behave like this from now on; see `Weather`."""
        self._do(self._change(Weather(**weather)))

    def heal(self) -> None:
        self.be()

    def reset(self) -> None:
        """RST to both ends of every open connection."""
        self._do(self._reset())

    def refuse(self) -> None:
        """Take no new connections: they are refused. `listen` takes them again."""
        self._do(self._stop_listening())

    def listen(self) -> None:
        self._do(self._listen())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _change(self, weather: Weather) -> None:
        self.weather = weather
        self._clear.set()
        self._clear = asyncio.Event()

    async def _reset(self) -> None:
        for connection in tuple(self._open):
            connection.reset()
            self.met["reset"] += 1

    async def _close(self) -> None:
        await self._stop_listening()
        await self._reset()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _abort(writer)
            return
        connection = _Connection(self, (reader, writer), server)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    async def pass_through(self, direction: str, piece: bytes) -> bytes:
        """What is left of a piece, when it may go on."""
        self.met["held"] += direction in self.weather.held
        while direction in self.weather.held:
            await self._clear.wait()
        if self.weather.latency_seconds:
            self.met["latency_seconds"] += 1
            await asyncio.sleep(self.weather.latency_seconds)
        if self.weather.octets_per_second:
            self.met["octets_per_second"] += 1
            await asyncio.sleep(len(piece) / self.weather.octets_per_second)
        if direction not in self.weather.lost:
            return piece
        self.met["lost"] += 1
        return b""

    def keeps_the_answer(self, piece: bytes) -> bool:
        """Whether the server's answer to this piece must not arrive; counts it."""
        wanted = self.weather.unanswered
        if wanted is None or wanted not in piece or self.unanswered >= self.weather.unanswered_times:
            return False
        self.unanswered += 1
        return True


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, network: BadNetwork, client: _Ends, server: _Ends) -> None:
        self._network = network
        self._client, self._server = client, server
        self._passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self._keeps_back = False
        self._kept_back = asyncio.Event()

    async def run(self) -> None:
        up = asyncio.create_task(self._pump(TO_SERVER, self._client[0], self._server[1]))
        down = asyncio.create_task(self._pump(TO_CLIENT, self._server[0], self._client[1]))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.ALL_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for _, writer in (self._client, self._server):
                writer.transport.abort()

    def reset(self) -> None:
        for _, writer in (self._client, self._server):
            _abort(writer)

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while piece := await reader.read(_CHUNK_OCTETS):
                left = await self._network.pass_through(direction, piece)
                if not await self._hand_on(direction, left, writer):
                    return
            writer.write_eof()
            return
        self.reset()

    async def _hand_on(self, direction: str, piece: bytes, writer: asyncio.StreamWriter) -> bool:
        """False when that was the end of the connection."""
        weather = self._network.weather
        if direction == TO_CLIENT and self._keeps_back:
            self._kept_back.set()
            return True
        if weather.cut_at is not None and weather.cut == direction:
            piece = piece[: max(0, weather.cut_at - self._passed[direction])]
        self._keeps_back = direction == TO_SERVER and self._network.keeps_the_answer(piece)
        self._passed[direction] += len(piece)
        writer.write(piece)
        await writer.drain()
        if self._keeps_back:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._kept_back.wait(), _REPLY_SECONDS)
            self.reset()
            return False
        is_cut = weather.cut_at is not None and weather.cut == direction
        if is_cut and self._passed[direction] >= (weather.cut_at or 0):
            self._network.met["cut"] += 1
            self.reset()
            return False
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    """RST, not FIN."""
    with contextlib.suppress(OSError):
        raw: socket.socket | None = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
