"""A server's host and port, looked up and connected to: its DNS keeps no thread that another one needs."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Host"]

_MOMENT_SECONDS = 3.0
_Address = tuple[int, Any]
"""A socket's family, and what it connects to."""


class Host:
    """One host and port. One event loop's.

    The loop's own way goes through a few threads that all hosts share, and a lookup in them cannot be ended.
    Here each host has one thread at most: who asks during a lookup is given what that one finds.
    """

    def __init__(
        self,
        name: str,
        port: int,
        look_up: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo,
    ) -> None:
        self.name = name
        self.port = port
        self._look_up = look_up
        self._lookup: asyncio.Future[list[_Address]] | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name}:{self.port}{', being looked up' if self._lookup is not None else ''}>"

    @property
    def is_literal(self) -> bool:
        """Whether the name is an address already."""
        try:
            ipaddress.ip_address(self.name)
        except ValueError:
            return False
        return True

    async def connect(self, seconds: float) -> socket.socket:
        """A socket that is connected to the first of its addresses that takes it.

        Raises OSError: socket.gaierror if there are none, TimeoutError after `seconds`; or ValueError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._addresses()
            return await _first_that_takes(addresses, deadline)
        except TimeoutError as error:
            raise TimeoutError(f"Timed out connecting to {self.name} on port {self.port}") from error

    async def _addresses(self) -> list[_Address]:
        """In the order to try them in. Who is cancelled leaves the lookup to those who ask next."""
        if self._lookup is None:
            self._lookup = self._begin()
        return await asyncio.shield(self._lookup)

    def _begin(self) -> asyncio.Future[list[_Address]]:
        loop = asyncio.get_running_loop()
        lookup: asyncio.Future[list[_Address]] = loop.create_future()
        lookup.add_done_callback(self._end)
        # A daemon: no process waits for DNS when it ends.
        threading.Thread(target=self._run, args=(loop, lookup), name="lookup", daemon=True).start()
        return lookup

    def _end(self, lookup: asyncio.Future[list[_Address]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # perhaps nobody waits any more

    def _run(self, loop: asyncio.AbstractEventLoop, lookup: asyncio.Future[list[_Address]]) -> None:
        tell: Callable[[Any], None] = lookup.set_result
        said: object
        try:
            found = self._look_up(self.name, self.port, type=socket.SOCK_STREAM)
            said = [(family, address) for family, *_, address in found]
        except Exception as error:  # whoever asked is told
            tell, said = lookup.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, said)


async def _first_that_takes(addresses: list[_Address], deadline: float) -> socket.socket:
    """Each may take its part of what is left of the time, or a moment. Raises what the last one came to."""
    loop = asyncio.get_running_loop()
    moment = min(_MOMENT_SECONDS, (deadline - loop.time()) / 4)
    failure = OSError("the name has no address")
    for tried, (family, address) in enumerate(addresses):
        left = deadline - loop.time()
        share = min(left, max(left / (len(addresses) - tried), moment))
        try:
            async with asyncio.timeout(share):
                return await _connected(family, address)
        except OSError as error:
            failure = error
    raise failure


async def _connected(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection
