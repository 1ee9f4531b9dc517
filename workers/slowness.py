"""Watches what this process's attempts wait for: a server that crawls is as bad as one that refuses."""

import asyncio
from collections.abc import Collection

from campaigns.breaker import Fault
from workers.attempt import Attempt
from workers.services import Services

__all__ = ["Slowness"]


class Slowness:
    """`look` several times a second. `attempts` are those that run now.

    A mail that waits for an answer for too long is told to the board, once; and while a server's breaker is
    open, mails that wait for it in vain are broken off before their dot, to go through another.
    """

    def __init__(self, attempts: Collection[Attempt], services: Services) -> None:
        self._attempts = attempts
        self._services = services

    def __repr__(self) -> str:
        return f"<Slowness: {sum(map(self._is_slow, self._attempts))} of {len(self._attempts)} attempts>"

    async def look(self) -> None:
        self._services.awake.tick()
        slow = [one for one in self._attempts if self._is_slow(one) and not one.is_told_slow]
        await asyncio.gather(*(self._tell(one) for one in slow))
        for attempt in tuple(self._attempts):
            if self._services.standing.is_open(attempt.job.server):
                self._break_off(attempt)

    def _is_slow(self, attempt: Attempt) -> bool:
        return attempt.wait.seconds > self._services.standing.slow_seconds

    async def _tell(self, attempt: Attempt) -> None:
        attempt.is_told_slow = True
        server, wait = attempt.job.server, attempt.wait
        fault = Fault(
            reason=f"no answer at {wait.phase} for {wait.seconds:.1f} s",
            token=attempt.token,
            age_seconds=attempt.age_seconds,
            waited_seconds=wait.seconds,
            is_stuck=self._is_stuck(server),
        )
        await self._services.standing.report_fault(server, fault)

    def _is_stuck(self, server: str) -> bool:
        """Whether nothing moves: all connections to the server are taken, and none of them gets on."""
        if self._services.pool(server).has_room:
            return False
        of_server = (one for one in self._attempts if one.job.server == server)
        return all(one.is_in_line or self._is_slow(one) for one in of_server)

    def _break_off(self, attempt: Attempt) -> None:
        if attempt.is_in_line or self._is_slow(attempt):
            attempt.break_off()
