"""What a scripted SMTP server accepted, in a file that outlives its SIGKILL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["AcceptedMail", "MailRecord", "described", "read_records"]

_MESSAGE_ID = re.compile(rb"^message-id:\s*(\S+)", re.IGNORECASE | re.MULTILINE)

_Entry = tuple[bytes, Callable[[], None] | None]


@dataclass(frozen=True, kw_only=True)
class AcceptedMail:
    """One mail for one recipient that a server took.

    `at`: epoch seconds, when its dot had come, whatever time the answer takes. `size`, `sha256`: of the
    message, dots unstuffed, CRLF. `reply_sent`: the reply to the dot was handed to the network; False also
    where the server was killed before it could note it.
    `data`: the message as Latin-1 text, where the server was asked to keep it.
    """

    id: str
    at: float
    server: str
    recipient: str
    sender: str
    message_id: str
    size: int
    sha256: str
    reply_sent: bool
    data: str | None = None


def described(message: bytes) -> dict[str, str | int]:
    """What a record says of a message."""
    found = _MESSAGE_ID.search(message, 0, max(message.find(b"\r\n\r\n"), 0) or len(message))
    return {
        "message_id": found[1].decode("latin-1") if found else "",
        "size": len(message),
        "sha256": hashlib.sha256(message).hexdigest(),
    }


class MailRecord:
    """Appends mails to a file, many with one fsync, in a thread of its own."""

    def __init__(self, path: Path, call: Callable[[Callable[[], None]], object]) -> None:
        """`call`: runs a function where the callbacks belong, such as `loop.call_soon_threadsafe`."""
        self._call = call
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._file = _opened(path)
        self._thread = threading.Thread(target=self._run, name="mail-record", daemon=True)
        self._thread.start()

    def accept(self, mail: Mapping[str, Any], then: Callable[[], None]) -> None:
        """Write a mail durably, and call `then` when that is done."""
        self._entries.put((json.dumps(mail).encode() + b"\n", then))

    def note_reply(self, mail_id: str) -> None:
        """Note that the reply to a mail went out. Not durable at once: without it, nobody can tell."""
        self._entries.put((json.dumps({"id": mail_id, "reply_sent": True}).encode() + b"\n", None))

    def close(self) -> None:
        """Write what is left."""
        self._entries.put(None)
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while (first := self._entries.get()) is not None:
            batch, is_last = self._gather(first)
            self._file.write(b"".join(line for line, _ in batch))
            callbacks = [then for _, then in batch if then is not None]
            if callbacks:
                os.fsync(self._file.fileno())
                # The loop may be closed already, where a server is stopped in mid-mail.
                with contextlib.suppress(RuntimeError):
                    self._call(lambda callbacks=callbacks: _run_all(callbacks))  # type: ignore[misc]
            if is_last:
                return

    def _gather(self, first: _Entry) -> tuple[list[_Entry], bool]:
        batch = [first]
        with contextlib.suppress(queue.Empty):
            while True:
                entry = self._entries.get_nowait()
                if entry is None:
                    return batch, True
                batch.append(entry)
        return batch, False


def _run_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _opened(path: Path) -> IO[bytes]:
    """Open for appending, unbuffered; a line that a SIGKILL tore is ended first."""
    file = path.open("ab+", buffering=0)
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def read_records(path: Path) -> list[AcceptedMail]:
    """The mails in the file, in the order of acceptance. Torn lines are left out; no file means no mail."""
    mails: dict[str, dict[str, Any]] = {}
    replied: set[str] = set()
    for entry in _entries(path):
        if "recipient" in entry:
            mails[entry["id"]] = entry
        elif entry.get("reply_sent"):
            replied.add(entry["id"])
    return [AcceptedMail(**mail, reply_sent=mail_id in replied) for mail_id, mail in mails.items()]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and "id" in entry:
                    yield entry
