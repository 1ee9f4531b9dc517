"""A reply that has arrived counts, however late we are to look."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.reply import Fault
from tests.integration.smtp.trial import BODY, PATIENT
from workers.dialogue import Dialogue
from workers.envelope import Envelope
from workers.reply_reader import RawReply
from workers.transaction import Transaction

ROOT = Path(__file__).parents[3]
ACCEPTED = b"250 2.0.0 Ok: queued\r\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


async def connected(listener: socket.socket) -> tuple[Dialogue, socket.socket, int]:
    """Our side, the server's side, and our descriptor."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
    server, _ = listener.accept()
    return Dialogue(transport, loop), server, transport.get_extra_info("socket").fileno()


def wait_until_readable(descriptor: int) -> None:
    """Without the loop: it does not see what arrives meanwhile."""
    assert select.select([descriptor], [], [], 20)[0]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_reply_that_came_while_the_process_was_stopped_counts(listener: socket.socket, loop: str) -> None:
    command = [sys.executable, "-m", "tests.integration.smtp.waiting_child"]
    port = str(listener.getsockname()[1])
    child = subprocess.Popen([*command, port, loop], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        server, _ = listener.accept()
        with server:
            assert server.recv(10)
            threading.Event().wait(0.2)  # it is in its loop by then, or the deadline does not pass
            os.kill(child.pid, signal.SIGSTOP)
            server.sendall(ACCEPTED)
            threading.Event().wait(1.3)  # its deadline passes
            os.kill(child.pid, signal.SIGCONT)
            output, _ = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert output.strip() == str(RawReply(250, "2.0.0 Ok: queued"))


async def test_a_reply_in_the_kernel_is_in_time_when_the_deadline_has_passed(listener: socket.socket) -> None:
    dialogue, server, descriptor = await connected(listener)
    with server:
        server.sendall(b"250-one\r\n")
        assert await dialogue.reply(0.05) is Fault.TIMEOUT
        server.sendall(b"250 two\r\n")
        wait_until_readable(descriptor)
        said = await dialogue.reply(-1.0)
        assert isinstance(said, RawReply) and said.code == 250
        assert await dialogue.reply(-1.0) is Fault.TIMEOUT
    dialogue.abort()


async def test_a_reply_in_the_kernel_counts_although_the_timer_came_first(listener: socket.socket) -> None:
    dialogue, server, descriptor = await connected(listener)
    with server:
        waiting = asyncio.ensure_future(dialogue.reply(20.0))
        await asyncio.sleep(0)
        server.sendall(ACCEPTED)
        wait_until_readable(descriptor)
        dialogue._wake(False)  # what the timer does: whether a loop reads before that is its own affair
        assert await waiting == RawReply(250, "2.0.0 Ok: queued")
    dialogue.abort()


def accept_one(server: socket.socket, may_reply: threading.Event) -> None:
    """Says yes to MAIL, RCPT, DATA and, when it may, to the dot."""
    lines = server.makefile("rb")
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"):
        lines.readline()
        server.sendall(reply)
    while lines.readline() != b".\r\n":
        pass
    assert may_reply.wait(20)
    server.sendall(ACCEPTED)


async def test_who_is_cancelled_with_the_reply_to_the_dot_there_has_it(listener: socket.socket) -> None:
    dialogue, server, descriptor = await connected(listener)
    may_reply, cancelled = threading.Event(), list[bool]()
    peer = threading.Thread(target=accept_one, args=(server, may_reply))
    peer.start()
    transaction = Transaction(dialogue, {}, PATIENT, is_reused=False, needs_reset=False)
    loop = asyncio.get_running_loop()

    def cancel_when_the_reply_is_there() -> None:
        may_reply.set()
        wait_until_readable(descriptor)
        cancelled.append(sending.cancel())

    def on_dot() -> None:
        loop.call_later(0.1, cancel_when_the_reply_is_there)  # uvloop writes at the end of its turn

    async def go() -> None:
        return None

    sending = asyncio.ensure_future(
        transaction.run(
            Envelope(sender="news@example.com", recipient="bob@example.net", smtputf8=False),
            BODY,
            go,
            lambda: True,
            on_dot,
        )
    )
    result = await sending
    assert cancelled == [True] and result.ok and not dialogue.has_ended
    peer.join()
    server.close()
    dialogue.abort()
