"""Group commit: what many coroutines want written goes to the database as one batch, in one transaction.

The design keeps three statements a mail affordable this way: a batch costs one flush to disk, not a hundred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["GroupCommit", "GroupCommitClosed"]

Op = TypeVar("Op")


class GroupCommitClosed(RuntimeError):  # noqa: N818 - named after what happened, as all our errors  # noqa: N818 - named after what happened, as all our errors
    """Submitted after `close()`: nothing was written."""


class GroupCommit(Generic[Op]):
    """Gathers operations and writes them batch by batch, in the order of their submission, in one thread.

    `write` gets a list of operations and returns one result for each, in the same order; a result that is an
    exception is raised to its own waiter alone. What `write` itself raises is raised to every waiter of that
    batch. At most `most` operations go into a batch; while one is written, and for `gather_seconds` after,
    the next one gathers. An operation whose waiter was cancelled before its batch began is not written; one
    cancelled later is, and its result is dropped. Belongs to the event loop on which it is first used.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Op]], Sequence[object]],
        *,
        most: int = 500,
        gather_seconds: float = 0.005,
        executor: Executor | None = None,
        name: str = "group-commit",
    ) -> None:
        self._write = write
        self._most = most
        self._gather_seconds = gather_seconds
        self._own_executor = executor is None
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._waiting: list[tuple[Op, asyncio.Future[Any]]] = []
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self.batches = 0
        self.operations = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "writing" if self._pump else "idle"
        told = f"{len(self._waiting)} waiting, {self.operations} in {self.batches} batches"
        return f"<GroupCommit {state}: {told}>"

    async def submit(self, operation: Op) -> Any:
        """Write the operation with the next batch and return its result.

        Raises what `write` returned for it as an exception, or raised, or GroupCommitClosed.
        """
        if self._closed:
            raise GroupCommitClosed("nothing can be written any more: the group commit was closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((operation, future))
        if self._pump is None:
            self._pump = loop.create_task(self._write_all())
        return await future

    async def close(self) -> None:
        """Refuse new operations, write what waits, end the thread."""
        self._closed = True
        if self._pump is not None:
            await asyncio.shield(self._pump)
        if self._own_executor:
            self._executor.shutdown(wait=False)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                if not self._closed and len(self._waiting) < self._most:
                    await asyncio.sleep(self._gather_seconds)
                await self._write_batch(self._next_batch())
        finally:
            self._pump = None
            self._abandon_waiting()

    def _next_batch(self) -> list[tuple[Op, asyncio.Future[Any]]]:
        taken, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return [(operation, future) for operation, future in taken if not future.done()]

    async def _write_batch(self, batch: list[tuple[Op, asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        operations = [operation for operation, _ in batch]
        self.batches += 1
        self.operations += len(batch)
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._write, operations
            )
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} operations were written, {len(results)} results came back")
        except asyncio.CancelledError:
            _settle(batch, [asyncio.CancelledError()] * len(batch))
            raise
        except Exception as error:
            results = [error] * len(batch)
        _settle(batch, results)

    def _abandon_waiting(self) -> None:
        """Only when the pump itself was cancelled, as at the end of a loop: nobody may wait for ever."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.cancel()


def _settle(batch: Sequence[tuple[object, asyncio.Future[Any]]], results: Sequence[object]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, asyncio.CancelledError):
            future.cancel()
        elif isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
