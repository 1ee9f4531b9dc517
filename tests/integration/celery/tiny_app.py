"""A small app of our own: `campaigns.deliver` does what the campaign's name says, and notes that it ran."""

import asyncio
import os
from pathlib import Path

from campaigns.errors import BrokerError
from campaigns.queues import DELIVER_TASK, TaskResult, create_app
from campaigns.settings import Settings
from workers.asyncio_pool import current_job, on_loop_start, on_loop_stop

DIRECTORY = Path(os.environ["TINY_DIRECTORY"])
NOTES = DIRECTORY / "notes"


def settings_for(directory: Path, broker: str) -> Settings:
    servers = [
        {"name": name, "url": "smtp://127.0.0.1:2525", "tls": "none", "connections": 20}
        for name in ("primary", "secondary")
    ]
    return Settings.model_validate({"directory": directory, "broker": broker, "servers": servers})


def note(*words: object) -> None:
    """One line, one write: many processes may append."""
    file = os.open(NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


app = create_app(
    settings_for(DIRECTORY, os.environ["TINY_BROKER"]),
    bulk_transport=os.environ.get("TINY_TRANSPORT", "bulk") == "bulk",
)
if seconds := os.environ.get("TINY_VISIBILITY"):
    app.conf.broker_transport_options["visibility_timeout"] = float(seconds)
    app.conf.broker_transport_options["unacked_restore_interval"] = 0.5
    # Whoever is killed while it restores, or has its broker killed, keeps all others from it for so long.
    app.conf.broker_transport_options["unacked_mutex_expire"] = 3
app.conf.worker_pool_restarts = True
app.conf.campaigns_shutdown_seconds = float(os.environ.get("TINY_GRACE", "30"))
stopping = asyncio.Event()


@app.task(name=DELIVER_TASK)
async def deliver(campaign: str, delivery: int, server: str) -> TaskResult | str:
    note("began", delivery, current_job.get().redelivered)
    try:
        return await act(campaign, delivery)
    except asyncio.CancelledError:
        note("cancelled", delivery)
        raise


async def act(campaign: str, delivery: int) -> TaskResult | str:
    match campaign:
        case "stuck":
            await asyncio.sleep(1000)
        case "slow":
            await asyncio.sleep(1.0)
        case "heeds":
            await stopping.wait()
        case "raises":
            raise ValueError("cannot send to bob@example.com")
        case "exits":
            raise SystemExit(3)
        case "cancels":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
    note("ended", delivery)
    results = {
        "retries": TaskResult(state="RETRY", result="450 4.2.2 mailbox full; again in 300 s"),
        "fails": TaskResult(state="FAILURE", result="550 5.1.1 no such user"),
        "nothing": TaskResult(state="IGNORED", result="claimed by another worker"),
        "plain": "just a text",
    }
    return results.get(campaign, TaskResult(state="SUCCESS", result="250 2.0.0 accepted by primary"))


@app.task(name="tests.noop")
async def noop(**_: object) -> None:
    pass


@app.task(name="tests.plain")
def plain(number: int) -> int:
    note("plain", number)
    return number


@app.task(name="tests.blocks", bind=True)
def blocks(self: object, number: int) -> None:
    note("blocks", number, self.request.id)


if os.environ.get("TINY_HOOKS"):

    async def start() -> None:
        if os.environ["TINY_HOOKS"] == "fail":
            raise BrokerError("the broker has maxmemory-policy allkeys-lru: set it to noeviction")
        note("start-hook")

    async def stop() -> None:
        note("stop-hook")
        stopping.set()

    on_loop_start(app, start)
    on_loop_stop(app, stop)
