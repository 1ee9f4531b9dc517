"""A worker that is killed, or falls asleep, at a named point of an attempt; or that has another oddity.

    python -m tests.faults.odd_worker ODDITY[,ODDITY...] -A workers worker -Q smtp.primary ...

kill:POINT:N      SIGKILL at the Nth time that an attempt comes to POINT
stop:POINT:N      SIGSTOP there; never while the process is within a write transaction
thrice            each message is published three times
visibility:S      the broker delivers again what was not acknowledged for S seconds
clock:S           the wall clock is S seconds ahead
claims            each claim and the type of its answer are written, as JSON, into `claims-PID`

Before it dies or falls asleep it writes whose attempt that was into `doomed-PID`, and with a wrong clock what
that shows at each claim into `clock-PID`, both where it runs.

The steps are wrapped from outside: what runs is the product, and nothing in it knows of this.
"""

# ruff: noqa: PLC0415 - the clock is set before anything else is imported

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

__all__ = ["POINTS"]

POINTS = (
    "before claim",
    "claim unheard",
    "after claim",
    "rendered",
    "after MAIL",
    "after RCPT",
    "after DATA",
    "in mid-body",
    "before commit point",
    "commit point unheard",
    "after commit point",
    "dot handed over",
    "reply read",
    "before record",
    "record unheard",
    "after record",
)
"""`unheard`: it is durable, and nobody in the process knows it yet."""


_delivery: ContextVar[int] = ContextVar("delivery")
"""Whose attempt it is that comes to a point."""


class Doom:
    """Does something, once, at the Nth passage of a point, and writes down whose attempt that is."""

    def __init__(self, point: str, count: int, act: Callable[[], None]) -> None:
        self.point = point
        self._left = count
        self._act = act
        self._lock = threading.Lock()

    def at(self, point: str, delivery_id: int | None = None) -> None:
        if point != self.point:
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
        whose = _delivery.get() if delivery_id is None else delivery_id
        Path(f"doomed-{os.getpid()}").write_text(str(whose))
        self._act()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Writing:
    """Held by everybody who is within a write transaction: a sleeper must not hold the database's locks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def wrap(self) -> None:
        from campaigns.database import Database

        write = Database.write

        @contextmanager
        def guarded(database: Database) -> Iterator[Any]:
            with self._lock, write(database) as connection:
                yield connection

        Database.write = guarded  # type: ignore[method-assign, assignment]

    def stop(self) -> None:
        """Sent to this very thread: it goes no further, as it might while another one takes the signal."""
        with self._lock:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _before(owner: Any, name: str, act: Callable[..., object]) -> None:
    original = getattr(owner, name)
    if asyncio.iscoroutinefunction(original):

        @wraps(original)
        async def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            act(*args)
            return await original(self, *args, **options)
    else:

        @wraps(original)
        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            act(*args)
            return original(self, *args, **options)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, act: Callable[..., None]) -> None:
    """`act` is given the result and the arguments."""
    original = getattr(owner, name)
    if asyncio.iscoroutinefunction(original):

        @wraps(original)
        async def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            result = await original(self, *args, **options)
            act(result, *args)
            return result
    else:

        @wraps(original)
        def wrapped(self: Any, *args: Any, **options: Any) -> Any:
            result = original(self, *args, **options)
            act(result, *args)
            return result

    setattr(owner, name, wrapped)


def _lay(doom: Doom) -> None:
    """Wrap the named steps."""
    from campaigns.group_commit import GroupCommit
    from campaigns.ledger import Claim, CommitPoint, Ledger, Record
    from campaigns.reply import Phase
    from workers.attempt import Attempt
    from workers.dialogue import Dialogue
    from workers.letters import Letter
    from workers.transaction import Transaction

    unheard = {Claim: "claim unheard", CommitPoint: "commit point unheard", Record: "record unheard"}
    answered = {Phase.MAIL: "after MAIL", Phase.RCPT: "after RCPT", Phase.DATA: "after DATA"}

    def applied(results: Sequence[object], operations: Sequence[object]) -> None:
        for operation, result in zip(operations, results, strict=True):
            if (result is True or not isinstance(result, bool | None)) and type(operation) in unheard:
                doom.at(unheard[type(operation)], operation.delivery_id)  # type: ignore[attr-defined]

    def submitting(operation: object) -> None:
        if isinstance(operation, Record):
            doom.at("before record", operation.delivery_id)

    def submitted(result: object, operation: object) -> None:
        if isinstance(operation, Record):
            doom.at("after record", operation.delivery_id)

    def answering(ended: object, phase: Phase, _: bytes) -> None:
        if ended is None and phase in answered:
            doom.at(answered[phase])

    _name_attempts(Attempt)
    _before(Attempt, "_claim", lambda *_: doom.at("before claim"))
    _after(Ledger, "apply", applied)
    _after(Attempt, "_claim", lambda claim, *_: doom.at("after claim") if claim and claim[1] else None)
    _after(Letter, "render", lambda *_: doom.at("rendered"))
    _after(Transaction, "_answer", answering)
    _before(Attempt, "_commit_point", lambda *_: doom.at("before commit point"))
    _after(Attempt, "_commit_point", lambda stop, *_: None if stop else doom.at("after commit point"))
    _before(Transaction, "_reply_to_dot", lambda: doom.at("dot handed over"))
    _after(Transaction, "_reply_to_dot", lambda *_: doom.at("reply read"))
    _before(GroupCommit, "submit", submitting)
    _after(GroupCommit, "submit", submitted)
    if doom.point == "in mid-body":
        _halve_bodies(Dialogue, doom)


def _name_attempts(attempt: Any) -> None:
    run = attempt.run

    async def named(self: Any) -> Any:
        _delivery.set(self.job.delivery_id)
        return await run(self)

    attempt.run = named


def _halve_bodies(dialogue: Any, doom: Doom) -> None:
    whole = dialogue.write_body

    async def write_body(self: Any, body: bytes, seconds: float) -> Any:
        half = len(body) // 2
        fault = await whole(self, body[:half], seconds)
        if fault is None:
            doom.at("in mid-body")
            fault = await whole(self, body[half:], seconds)
        return fault

    dialogue.write_body = write_body


def _publish_thrice() -> None:
    from campaigns import producer, publishing, queues, sweep
    from workers import services

    once = publishing.publish_deliveries

    def thrice(app: Any, deliveries: Sequence[Any], **options: Any) -> None:
        for _ in range(3):
            once(app, deliveries, **options)
        sys.stdout.write(f"published thrice: {len(deliveries)}\n")
        sys.stdout.flush()

    for module in (producer, publishing, queues, sweep, services):
        module.publish_deliveries = thrice  # type: ignore[attr-defined]


def _set_visibility(seconds: int) -> None:
    """And nobody renews what they hold: the broker takes it for that of the dead."""
    from campaigns import bulk_transport, queues

    queues.VISIBILITY_SECONDS = seconds
    queues.STOCK_VISIBILITY_SECONDS = seconds
    restore = bulk_transport.QoS.restore_tags

    def told(self: Any, tags: Sequence[str]) -> None:
        restore(self, tags)
        sys.stdout.write(f"delivered again: {len(tags)}\n")
        sys.stdout.flush()

    bulk_transport.QoS.restore_tags = told  # type: ignore[method-assign]
    bulk_transport.QoS.renew = lambda self: self.restore_visible(interval=1)  # type: ignore[method-assign]


def _write_claims() -> None:
    from campaigns.ledger import Claim, Ledger

    def answered(results: Sequence[object], operations: Sequence[object]) -> None:
        with Path(f"claims-{os.getpid()}").open("a") as file:
            for operation, result in zip(operations, results, strict=True):
                if isinstance(operation, Claim):
                    file.write(json.dumps([operation.delivery_id, type(result).__name__]) + "\n")

    _after(Ledger, "apply", answered)


def _set_clock(seconds: float) -> None:
    """Before anything else is imported: many keep the function."""
    right = time.time
    time.time = lambda: right() + seconds
    from workers.attempt import Attempt

    _before(Attempt, "_claim", lambda *_: Path(f"clock-{os.getpid()}").write_text(str(time.time())))


def _become_odd(oddity: str) -> None:
    kind, _, rest = oddity.partition(":")
    if kind in {"kill", "stop"}:
        point, _, count = rest.partition(":")
        assert point in POINTS, f"{point} is none of {POINTS}"
        writing = _Writing()
        if kind == "stop":
            writing.wrap()
        _lay(Doom(point, int(count), _kill if kind == "kill" else writing.stop))
    elif kind == "thrice":
        _publish_thrice()
    elif kind == "visibility":
        _set_visibility(int(rest))
    elif kind == "claims":
        _write_claims()
    elif kind == "clock":
        _set_clock(float(rest))
    else:
        raise SystemExit(f"{oddity} is no oddity")


def main(oddities: str, *arguments: str) -> None:
    for oddity in sorted(oddities.split(","), key=lambda one: not one.startswith("clock")):
        _become_odd(oddity)
    from celery.__main__ import main as celery

    sys.argv = ["celery", *arguments]
    celery()


if __name__ == "__main__":
    main(*sys.argv[1:])
