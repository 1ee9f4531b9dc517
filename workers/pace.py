"""A server's rate, as its worker keeps to it: attempts wait here, in their order, until one more may go."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from campaigns.limits import Limits

__all__ = ["Pace"]

BURST_SECONDS = 0.2


class Pace:
    """Lets `rate_per_second` attempts pass, all processes together; without a rate, everybody at once.

    `processes()`: how many share the rate, for the time when they cannot talk.
    """

    def __init__(
        self, server: str, rate_per_second: float | None, limits: Limits, processes: Callable[[], int]
    ) -> None:
        self._name = f"server:{server}"
        self._rate = rate_per_second
        self._limits = limits
        self._processes = processes
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._pump: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Pace of {self._name}: {self._rate or 'no limit'}, {len(self._waiting)} waiting>"

    async def turn(self) -> None:
        """Returns when one more mail may go."""
        if self._rate is None:
            return
        ticket = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._let_pass(self._rate))
        await ticket

    async def _let_pass(self, rate: float) -> None:
        while self._drop_cancelled():
            call = partial(
                self._limits.take,
                self._name,
                rate,
                min(len(self._waiting), max(1, int(rate * BURST_SECONDS))),
                burst_seconds=BURST_SECONDS,
                processes=self._processes(),
            )
            grant = await asyncio.to_thread(call)
            for _ in range(grant.granted):
                self._pass_one()
            if self._waiting:
                await asyncio.sleep(max(grant.wait_seconds, 0.01))

    def _drop_cancelled(self) -> bool:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _pass_one(self) -> None:
        if self._drop_cancelled():
            self._waiting.popleft().set_result(None)
