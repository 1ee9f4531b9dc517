"""One task in the asyncio pool: what to run, and how its end is told to Celery."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.state import task_ready

from campaigns.queues import TaskResult

__all__ = ["PoolJob", "current_job", "finish", "run_plain"]

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"[^\s@<>\"'(,;:]+@[^\s@<>\"'),;:]+")
_MOST_RESULT = 1000


@dataclass(frozen=True, kw_only=True)
class Returned:
    value: object


@dataclass(frozen=True, kw_only=True)
class Raised:
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What Celery's tracer returned for a plain task: (failed, value, runtime in seconds)."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """Broken off from outside; its message was not dealt with."""


Outcome = Returned | Raised | Traced | Cancelled


class PoolJob:
    """A task and the request that asked for it. Celery keeps it as the request's result handle."""

    def __init__(self, app: Celery, target: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
        self.target, self.kwargs = target, kwargs or {}
        self.args: tuple[Any, ...] = tuple(args)
        self.request = getattr(options.get("callback"), "__self__", None)
        self._accept = options.get("accept_callback")
        self.name, self.identity = self.args[0], self.args[1]
        self.coroutine_function = _coroutine_function(app.tasks.get(self.name))
        self.started = time.monotonic()
        self.runtime_seconds = 0.0
        self.task: asyncio.Task[object] | None = None
        self.terminated = False

    def __repr__(self) -> str:
        return f"<PoolJob {self.name}[{self.identity}]>"

    @property
    def redelivered(self) -> bool:
        """True if the message may have been in another worker's hands before."""
        return bool(self.request is not None and self.request.delivery_info.get("redelivered"))

    def accept(self) -> None:
        """Tell Celery that it runs from now on: `task-started`, `inspect active`."""
        self.started = time.monotonic()
        if self._accept is not None:
            self._accept(os.getpid(), self.started)

    def terminate(self, _signal: object = None) -> None:
        """Cancel the coroutine; called by a cold shutdown, and by `revoke --terminate`."""
        self.terminated = True
        if self.task is not None:
            self.task.get_loop().call_soon_threadsafe(self.task.cancel)

    def start(self, loop: asyncio.AbstractEventLoop, done: Callable[[PoolJob, Outcome], None]) -> None:
        """On the loop's thread."""
        self.task = loop.create_task(self._run(), name=self.identity)
        self.task.add_done_callback(lambda task: self._done(task, done))
        if self.terminated:
            self.task.cancel()

    async def _run(self) -> object:
        current_job.set(self)
        assert self.coroutine_function is not None
        request = self.args[2]
        try:
            return await self.coroutine_function(*request["args"], **request["kwargs"])
        except (
            SystemExit,
            KeyboardInterrupt,
        ) as error:
            # Let through, it would end the loop, and with it every other task.
            raise RuntimeError("a task tried to end the process") from error

    def _done(self, task: asyncio.Task[object], done: Callable[[PoolJob, Outcome], None]) -> None:
        self.runtime_seconds = time.monotonic() - self.started
        if task.cancelled():
            done(self, Cancelled())
        elif (error := task.exception()) is not None:
            done(self, Raised(error=error))
        else:
            done(self, Returned(value=task.result()))


current_job: ContextVar[PoolJob] = ContextVar("current_job")
"""In an `async def` task: the job it is, with `identity` (the task id) and `redelivered`."""


def run_plain(job: PoolJob) -> Outcome:
    """Run a plain `def` task through Celery's tracer, in the calling thread."""
    try:
        value = job.target(*job.args, **job.kwargs)
    except BaseException as error:
        return Raised(error=error)
    finally:
        job.runtime_seconds = time.monotonic() - job.started
    return Traced(value=value)


def finish(job: PoolJob, outcome: Outcome, *, stopping: bool) -> None:
    """Acknowledge the message, or leave it to go back; send the event. Never raises for one task's sake."""
    request = job.request
    try:
        match outcome:
            case _ if request is None:
                log.error("a task without a request ended", extra={"task": job.identity})
            case Traced(value=value):
                request.on_success(value)
            case Returned(value=TaskResult() as result):
                _tell(request, result, job)
            case Returned(value=value):
                _tell(request, TaskResult(state="SUCCESS", result=_shown(value)), job)
            case Raised(error=Reject() | Ignore() | Retry() as error):
                _obey(request, error, job)
            case Raised(error=error):
                _fail(request, error, job)
            case Cancelled() if stopping or job.terminated:
                task_ready(request)
            case Cancelled():
                _fail(request, asyncio.CancelledError("cancelled from within"), job)
    except Exception:
        log.exception("the end of a task could not be told", extra={"task": job.identity})


def _tell(request: Any, result: TaskResult, job: PoolJob) -> None:
    text = result.result[:_MOST_RESULT]
    if result.state == "SUCCESS":
        request.on_success((0, text, job.runtime_seconds))
    elif result.state == "RETRY":
        _end(request, "task-retried", exception=text, traceback="", runtime=job.runtime_seconds)
    elif result.state == "FAILURE":
        _end(request, "task-failed", exception=text, traceback="", runtime=job.runtime_seconds)
    else:
        _end(request, "task-ignored", result=text, runtime=job.runtime_seconds)


def _end(request: Any, event: str, **fields: object) -> None:
    task_ready(request)
    if request.task.acks_late:
        request.acknowledge()
    request.send_event(event, **fields)


def _obey(request: Any, error: Exception, job: PoolJob) -> None:
    """Celery's own exceptions mean what they mean elsewhere."""
    request.on_failure(ExceptionInfo((type(error), error, error.__traceback__)), return_ok=True)
    if isinstance(error, Ignore):
        request.send_event("task-ignored", result=_redacted(str(error)), runtime=job.runtime_seconds)


def _fail(request: Any, error: BaseException, job: PoolJob) -> None:
    story = _redacted("".join(traceback.format_exception(error)))
    log.error("a task ended in an error that nobody expected: %s", story, extra={"task": job.identity})
    shown = _redacted(f"{type(error).__name__}: {error}")[:_MOST_RESULT]
    _end(request, "task-failed", exception=shown, traceback=story, runtime=job.runtime_seconds)


def _shown(value: object) -> str:
    return "" if value is None else _redacted(str(value))


def _redacted(text: str) -> str:
    return _ADDRESS.sub("<address>", text)


def _coroutine_function(task: Any) -> Callable[..., Coroutine[Any, Any, object]] | None:
    function = getattr(task, "run", None)
    return function if inspect.iscoroutinefunction(function) else None
