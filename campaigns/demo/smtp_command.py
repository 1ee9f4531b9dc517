"""The scripted SMTP server's command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
from functools import partial
from pathlib import Path

from campaigns.demo.smtp_server import EXTENSIONS, ScriptedSmtpServer, ScriptMistake, answer_control

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGINT or SIGTERM. Exits with 2 for wrong usage, 1 where it cannot listen or record."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        server = _server(options)
    except (ScriptMistake, OSError) as mistake:
        parser.error(str(mistake))
    try:
        _run(serve(server, options.control))
    except OSError as error:
        sys.exit(f"smtp_server {options.name}: cannot serve port {options.port}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m campaigns.demo.smtp_server",
        description="An SMTP server on this machine that records every mail it accepts.",
        epilog="How it is made to misbehave is told at the top of campaigns/demo/smtp_server.py.",
    )
    parser.add_argument("--port", type=int, required=True, help="0: any free one")
    parser.add_argument(
        "--record", type=Path, required=True, metavar="FILE", help="accepted mails, JSON lines"
    )
    parser.add_argument("--control", metavar="PORT|PATH", help="TCP port (0: any free one) or unix socket")
    parser.add_argument("--name", default="scripted")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tls", choices=("none", "starttls", "implicit"), default="none")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="certificate chain and private key")
    parser.add_argument("--username", help="AUTH is required then")
    parser.add_argument("--password", default="")
    parser.add_argument("--extensions", default=",".join(EXTENSIONS), metavar="A,B,...")
    parser.add_argument("--data", action="store_true", help="record the messages themselves, too")
    parser.add_argument("--receive-buffer", type=int, metavar="OCTETS")
    return parser


def _server(options: argparse.Namespace) -> ScriptedSmtpServer:
    context = None
    if options.certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
    if not 0 <= options.port <= 65535:
        raise ScriptMistake(f"--port {options.port} is not from 0 to 65535")
    if not options.record.absolute().parent.is_dir():
        raise ScriptMistake(f"--record {options.record}: there is no such directory")
    return ScriptedSmtpServer(
        options.record,
        name=options.name,
        host=options.host,
        port=options.port,
        tls=options.tls,
        ssl_context=context,
        username=options.username,
        password=options.password,
        extensions=[line for line in options.extensions.split(",") if line],
        keeps_data=options.data,
        receive_buffer_octets=options.receive_buffer,
    )


async def serve(server: ScriptedSmtpServer, control: str | None) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server:
        where = await _open_control(server, control)
        print(json.dumps({"name": server.name, "port": server.port, "control": where}), flush=True)
        await stop.wait()


async def _open_control(server: ScriptedSmtpServer, control: str | None) -> int | str | None:
    if control is None:
        return None
    answer = partial(answer_control, server)
    if not control.isdigit():
        Path(control).unlink(missing_ok=True)  # noqa: ASYNC240 - before anybody is served
        await asyncio.start_unix_server(answer, control)
        return control
    channel = await asyncio.start_server(answer, "127.0.0.1", int(control))
    port: int = channel.sockets[0].getsockname()[1]
    return port


def _run(work: object) -> None:
    try:
        import uvloop  # noqa: PLC0415 - there is none on every platform
    except ImportError:
        asyncio.run(work)  # type: ignore[arg-type]
    else:
        uvloop.run(work)  # type: ignore[arg-type]
