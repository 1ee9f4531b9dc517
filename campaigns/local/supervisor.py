"""Runs child processes, starts again what dies, and ends them in order."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from campaigns.local.child import bound_command
from campaigns.local.log_line import log_line

__all__ = ["Child", "Supervisor"]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""One that ran for so long is started again at once when it ends: it was no crash loop."""

Say = Callable[[str], None]


async def _at_once() -> None:
    """A child that needs no waiting for."""


def _nothing() -> str | None:
    """A child whose end needs no looking into."""
    return None


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process to keep running: its name in the log, its command line, what its environment adds."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], Awaitable[None]] = _at_once
    """Returns when the process serves; what is started after it waits for that."""
    mend: Callable[[], str | None] = _nothing
    """Called when the process has ended, before it starts again; returns what to tell of what it did."""


class Running:
    """One child: its process of the moment, started again with a growing pause while it keeps dying."""

    def __init__(self, child: Child, *, say: Say, width: int) -> None:
        self.child = child
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self._say, self._width = say, width
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    async def start(self) -> None:
        """Start the process and keep it running; returns when it serves."""
        self._task = asyncio.create_task(self._keep_running(), name=self.child.name)
        self._task.add_done_callback(self._tell_a_surprise)
        await self.child.ready()

    def signal(self, number: signal.Signals) -> None:
        """Ask the process to end; from now on it is not started again."""
        self._ending = True
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        elif self._task:
            self._task.cancel()

    async def ended(self) -> None:
        if self._task:
            await asyncio.wait([self._task])

    async def _keep_running(self) -> None:
        while not self._ending:
            started = time.monotonic()
            end = await self._run_once()
            if self._ending:
                return
            if time.monotonic() - started >= STEADY_SECONDS:
                self._pause_seconds = FIRST_PAUSE_SECONDS
            self._tell(f"{end}; starts again in {self._pause_seconds:.1f} s")
            if mended := self.child.mend():
                self._tell(f"WARNING {mended}")
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            self.restarts += 1

    async def _run_once(self) -> str:
        """Returns how it ended, or why it could not start: too few processes or files is for a moment."""
        try:
            self.process = process = await self._started()
        except OSError as error:
            return f"could not be started: {error.strerror or error}"
        assert process.stdout is not None
        relay = asyncio.create_task(_relay(process.stdout, self._tell))
        try:
            return f"ended {_cause(await process.wait())}"
        finally:  # a process of its own that the child left behind may keep the pipe open
            await asyncio.wait([relay], timeout=1)
            relay.cancel()

    async def _started(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *bound_command(self.child.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.child.environment},
        )

    def _tell_a_surprise(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._tell(f"ERROR is not kept running any more: {error!r}")

    def _tell(self, text: str) -> None:
        self._say(log_line(self.child.name, text, now=time.time(), width=self._width))

    def __repr__(self) -> str:
        state = f"process {self.pid}" if self.pid else "ending" if self._ending else "not running"
        return f"<Running {self.child.name}: {state}, {self.restarts} restarts>"


class Supervisor:
    """Groups of children: started group by group, ended in the reverse order."""

    def __init__(self, groups: Sequence[Sequence[Child]], *, say: Say, grace_seconds: float) -> None:
        width = max(len(child.name) for group in groups for child in group)
        self.groups = [[Running(child, say=say, width=width) for child in group] for group in groups]
        self._say, self._grace_seconds = say, grace_seconds
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()

    async def run(
        self,
        ready: Callable[[], Awaitable[None]] = _at_once,
        *,
        before: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """Call `before`, start everything, call `ready`, wait for SIGINT, SIGTERM or SIGHUP, end everything.

        SIGINT and SIGHUP stay ignored where they are: `nohup`, and `&` in a script, mean it.
        Raises what these two or a child's `ready` raise, when everything has ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._asked_to_stop)
        try:
            await self._until_stopped(self._start(before, ready))
            await self._stop.wait()
        finally:
            await self._end()

    def _asked_to_stop(self) -> None:
        if self._stop.is_set() and not self._hurry.is_set():
            self._say("ending now")
            self._hurry.set()
        self._stop.set()

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()  # a failure to start is the caller's to report
        task.cancel()

    async def _start(
        self, before: Callable[[], Awaitable[None]], ready: Callable[[], Awaitable[None]]
    ) -> None:
        await before()
        for group in self.groups:
            await asyncio.gather(*(running.start() for running in group))
        await ready()

    async def _end(self) -> None:
        if self._stop.is_set():
            self._say(f"ending, within {self._grace_seconds:.0f} s (Ctrl-C again: end now)")
        for group in reversed(self.groups):
            await self._end_group(group)

    async def _end_group(self, group: Sequence[Running]) -> None:
        for running in group:
            running.signal(signal.SIGTERM)
        if not await self._all_ended(group, self._grace_seconds):
            for running in group:
                running.signal(signal.SIGKILL)
            await self._all_ended(group, self._grace_seconds)

    async def _all_ended(self, group: Sequence[Running], seconds: float) -> bool:
        ended = asyncio.ensure_future(_every(group))
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait([ended, hurry], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return ended.done() or bool(self._hurry.is_set() and await _soon(ended))
        finally:
            ended.cancel()
            hurry.cancel()

    def __repr__(self) -> str:
        return f"<Supervisor {self.groups}>"


async def _every(group: Sequence[Running]) -> None:
    await asyncio.gather(*(running.ended() for running in group))


async def _soon(ended: asyncio.Future[None]) -> bool:
    done, _ = await asyncio.wait([ended], timeout=0.2)
    return bool(done)


async def _relay(stream: asyncio.StreamReader, tell: Say) -> None:
    rest = b""
    while chunk := await stream.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in filter(bytes.strip, lines):
            tell(line.decode(errors="replace"))
    if rest.strip():
        tell(rest.decode(errors="replace"))


def _cause(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:  # most of the real-time signals have no name
        return f"by signal {-status}"
