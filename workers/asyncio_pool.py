"""A Celery worker pool that runs `async def` tasks on one event loop (uvloop where there is one).

Celery's own event loop (the hub: broker, acks, events, remote control) stays in the main thread; tasks run on
an asyncio loop in a second thread, up to `-c N` at a time. Between the two there is one queue each way and a
pipe that wakes the hub: however many tasks end while it sleeps, it wakes once.

A message is acknowledged after its task has ended (acks late). A task returns a `TaskResult`, and that is
what its event says; any other value is a SUCCESS. An exception is logged and makes a FAILURE; `Reject` and
`Ignore` do what they do elsewhere. Plain `def` tasks run in threads, through Celery's usual tracer.

Not supported: time limits (a coroutine has deadlines of its own; a warning says so), `current_task.request`
in `async def` tasks (use `current_job`), `Task.on_success` and its like, and Celery's task signals.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from celery import Celery
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown
from celery.worker import state as worker_state

from campaigns.errors import CampaignsError
from workers.pool_job import Outcome, PoolJob, current_job, finish, run_plain

__all__ = ["AsyncioPool", "current_job", "on_loop_start", "on_loop_stop"]

log = logging.getLogger(__name__)

# Celery's stubs are too strict for what its own pools do.
_BasePool: Any = BasePool

Hook = Callable[[], Awaitable[None]]

AFTER_HOOKS_SECONDS = 2.0
"""Between the return of the stop hooks and the cancelling of what still runs."""

COLD_SECONDS = 5.0
"""How long cancelled tasks get to clean up."""

_START_HOOKS = "asyncio_pool_start_hooks"
_STOP_HOOKS = "asyncio_pool_stop_hooks"
_THREADS_FOR_PLAIN_TASKS = 4


def on_loop_start(app: Celery, hook: Hook) -> None:
    """Have `await hook()` run on the tasks' loop before the first task.

    If it raises, the worker ends with status 1; a CampaignsError is said in one line.
    """
    app.__dict__.setdefault(_START_HOOKS, []).append(hook)


def on_loop_stop(app: Celery, hook: Hook) -> None:
    """Have `await hook()` run on the tasks' loop as soon as the worker begins to stop, warm or cold.

    It tells what runs to come to an end, and returns when the rest may be cut off: the worker waits for the
    hook, gives the tasks 2 s to return, then cancels those that still run. Their messages, and those of tasks
    not begun, go back to the queue. Without a hook the tasks get `campaigns_shutdown_seconds`.
    """
    app.__dict__.setdefault(_STOP_HOOKS, []).append(hook)


class AsyncioPool(_BasePool):  # type: ignore[misc]  # see above
    """One event loop in one thread; `limit` tasks at a time."""

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    limit: int
    loop: asyncio.AbstractEventLoop
    _pipe: tuple[int, int] | None = None
    _hub: Any = None

    def on_start(self) -> None:
        self._waiting: deque[PoolJob] = deque()
        self._starting: deque[PoolJob] = deque()
        self._finished: deque[tuple[PoolJob, Outcome]] = deque()
        self._running: set[PoolJob] = set()
        self._start_scheduled = self._wake_pending = self._stopping = self._stopped = False
        self._stop_hooks: concurrent.futures.Future[None] | None = None
        self._open_pipe()
        self._threads = concurrent.futures.ThreadPoolExecutor(
            _THREADS_FOR_PLAIN_TASKS, thread_name_prefix="plain-task"
        )
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._run_loop, name="asyncio-pool", daemon=True)
        self._thread.start()
        self._warn_of_time_limits()
        self._await_start_hooks()

    def register_with_event_loop(self, hub: Any) -> None:
        """Called again after each reconnection, when the hub has forgotten its readers."""
        self._hub = hub
        hub.add_reader(self._read_end, self._collect)

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> PoolJob:
        job = PoolJob(self.app, target, args, kwargs, options)
        self._waiting.append(job)
        self._start_waiting()
        return job

    def flush(self) -> None:
        """The connection is gone, and with it every chance to acknowledge what has not begun."""
        self._waiting.clear()

    def on_close(self) -> None:
        """Shutdown begins: nothing is started any more; the hooks tell what runs to end."""
        if not self._stopping:
            self._stopping = True
            self._waiting.clear()
            self._stop_hooks = self._run_hooks(_STOP_HOOKS)

    def on_stop(self) -> None:
        """Wait for the hooks and the tasks, handing over what ends meanwhile; then end the loop."""
        if self._stopped:
            return
        self._stopped = True  # a second signal may call this again, in the middle of it
        self.on_close()
        self._drain(lambda: self._hooks_done or _is_cold())
        self._drain(lambda: not self._running or _is_cold(), within_seconds=self._grace_seconds)
        self._cancel_running()
        self._drain(lambda: not self._running and self._hooks_done, within_seconds=COLD_SECONDS)
        self._end_loop()

    def on_terminate(self) -> None:
        self.on_stop()

    def restart(self) -> None:
        """`pool_restart`: the tasks end as in a shutdown, and a new loop begins."""
        self.on_stop()
        self.on_start()

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._start_waiting()

    def shrink(self, n: int = 1) -> None:
        self.limit = max(1, self.limit - n)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Celery names the process here, which says nothing; it also calls `PoolJob.terminate`."""

    @property
    def num_processes(self) -> int:
        return int(self.limit)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),
            "max-concurrency": int(self.limit),
            "processes": [os.getpid()],
            "loop": type(self.loop).__module__,
            "running": len(self._running),
            "waiting": len(self._waiting),
        }

    def _open_pipe(self) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
        self._read_end, self._write_end = self._pipe

    def _await_start_hooks(self) -> None:
        future = self._run_hooks(_START_HOOKS)
        while not concurrent.futures.wait([future], timeout=0.2).done:
            worker_state.maybe_shutdown()
        try:
            future.result()
        except CampaignsError as error:
            log.critical("the worker cannot start: %s", error)
            raise WorkerShutdown(1) from error

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self.limit and not self._stopping:
            self._start(self._waiting.popleft())

    def _start(self, job: PoolJob) -> None:
        self._running.add(job)
        job.accept()
        if job.coroutine_function is None:
            self._threads.submit(lambda: self._put_finished(job, run_plain(job)))
            return
        self._starting.append(job)
        if not self._start_scheduled:
            self._start_scheduled = True
            self.loop.call_soon_threadsafe(self._start_all)

    def _collect(self) -> None:
        """Hand over what has finished, and start what waits for a place."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        self._wake_pending = False  # before we look: what is put after our look wakes us again
        while self._finished:
            job, outcome = self._finished.popleft()
            self._running.discard(job)
            finish(job, outcome, stopping=self._stopping)
        self._start_waiting()

    def _drain(self, is_enough: Callable[[], bool], *, within_seconds: float | None = None) -> None:
        deadline = None if within_seconds is None else time.monotonic() + within_seconds
        while not is_enough() and (deadline is None or time.monotonic() < deadline):
            select.select([self._read_end], [], [], 0.05)
            self._collect()
            self._keep_the_hub_alive()

    def _keep_the_hub_alive(self) -> None:
        """Its heartbeats, and the renewal of what we hold, go on while we wait; not at any price."""
        try:
            if self._hub is not None:
                self._hub.fire_timers()
        except Exception as error:
            log.warning("the broker is away while the worker stops: %s", type(error).__name__)
            self._hub = None

    @property
    def _hooks_done(self) -> bool:
        return self._stop_hooks is None or self._stop_hooks.done()

    @property
    def _grace_seconds(self) -> float:
        if self.app.__dict__.get(_STOP_HOOKS):
            return AFTER_HOOKS_SECONDS
        return float(self.app.conf.get("campaigns_shutdown_seconds", 30.0))

    def _cancel_running(self) -> None:
        for job in tuple(self._running):
            job.terminate()

    def _end_loop(self) -> None:
        for job in self._running:
            log.warning("a task did not end in time; its message goes back", extra={"task": job.identity})
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(COLD_SECONDS)

    def _warn_of_time_limits(self) -> None:
        if self.app.conf.task_time_limit or self.app.conf.task_soft_time_limit:
            log.warning("time limits are not supported by the asyncio pool, and ignored")

    def _run_hooks(self, kind: str) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(_call(self.app.__dict__.get(kind, ())), self.loop)

    # On the loop's thread, or on one of the plain tasks':

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            _close_loop(self.loop)

    def _start_all(self) -> None:
        self._start_scheduled = False
        while self._starting:
            self._starting.popleft().start(self.loop, self._put_finished)

    def _put_finished(self, job: PoolJob, outcome: Outcome) -> None:
        self._finished.append((job, outcome))
        if not self._wake_pending:
            self._wake_pending = True
            os.write(self._write_end, b"\0")


async def _call(hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        try:
            await hook()
        except CampaignsError:
            raise
        except Exception:
            log.exception("a hook of the asyncio pool failed", extra={"hook": repr(hook)})
            raise


def _is_cold() -> bool:
    return worker_state.should_terminate not in (None, False)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=1.0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
