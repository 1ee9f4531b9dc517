"""`campaigns up`: database, broker, workers and Flower on this machine, in one terminal."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

from campaigns.broker import shown_url
from campaigns.checks import try_broker
from campaigns.client import Client
from campaigns.database import Database, create_database
from campaigns.errors import BrokerUnavailable, CampaignsError, DatabaseUnavailable
from campaigns.ledger import Ledger
from campaigns.local.broker import EmbeddedBroker
from campaigns.local.fleet_plan import FleetPlan
from campaigns.local.lock import InstanceLock
from campaigns.local.supervisor import Child, Supervisor
from campaigns.settings import Settings

__all__ = ["run_up"]

FLOWER_PORT = 5555
READY_SECONDS = 60.0
BROKER_PAUSE_SECONDS = 0.5
ENDING_SECONDS = 10.0
"""What a worker may need beyond the grace of its mail: closing connections, writing what is left."""

Say = Callable[[str], None]


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed is no reason to stop sending
        print(line, flush=True)


def run_up(
    settings: Settings,
    *,
    processes: int = 1,
    flower: bool = False,
    log_level: str = "WARNING",
    say: Say = _print,
) -> None:
    """Run everything until SIGINT or SIGTERM. Call it from the main thread.

    Raises AlreadyRunning if another one runs beside this configuration, and DatabaseError or BrokerError if
    one of them cannot be used.
    """
    with InstanceLock(settings.data_directory), _upgraded_database(settings) as database:
        plan = FleetPlan(
            settings=settings,
            processes=processes,
            flower_port=_free_port(FLOWER_PORT) if flower else None,
            log_level=log_level,
        )
        try:
            asyncio.run(_Up(plan, database, say).run())
        finally:
            if settings.embedded:
                EmbeddedBroker.of(settings).remove_socket()


@contextlib.contextmanager
def _upgraded_database(settings: Settings) -> Iterator[Database]:
    with Client(settings) as client:
        client.upgrade_database()
    database = create_database(settings.database)
    try:
        yield database
    finally:
        database.close()


class _Up:
    """One run: the plan's children, and what is said about them."""

    def __init__(self, plan: FleetPlan, database: Database, say: Say) -> None:
        self._plan, self._ledger, self._say = plan, Ledger(database), say
        self._supervisor = Supervisor(
            [group for group in (self._broker(), [*plan.workers(), *plan.flower()]) if group],
            say=say,
            grace_seconds=plan.settings.delivery.shutdown_seconds + ENDING_SECONDS,
        )

    async def run(self) -> None:
        self._say(f"starting: {self._plan.settings.config_file or 'configured by the environment'}")
        await self._supervisor.run(self._when_started, before=self._broker_is_there)
        self._say("ended; started again, it goes on where it was")

    def _broker(self) -> list[Child]:
        if not self._plan.settings.embedded:
            return []
        broker = EmbeddedBroker.of(self._plan.settings)

        async def ready() -> None:
            await asyncio.to_thread(broker.wait_until_ready)

        command, mend = broker.command(), broker.set_damage_aside
        return [Child(name="broker", command=command, ready=ready, mend=mend)]

    async def _broker_is_there(self) -> None:
        """Waits for a broker that is not ours: without it, workers would only complain."""
        settings, has_told = self._plan.settings, False
        while not settings.embedded:
            try:
                await asyncio.to_thread(try_broker, settings)
                return
            except BrokerUnavailable:
                if not has_told:
                    where = shown_url(settings.broker_url)
                    self._say(f"waiting for the broker at {where} (`campaigns check` says what is wrong)")
                has_told = True
            await asyncio.sleep(BROKER_PAUSE_SECONDS)

    async def _when_started(self) -> None:
        wanted = len(self._plan.workers())
        deadline = time.monotonic() + READY_SECONDS
        while (working := await asyncio.to_thread(self._workers_at_work)) < wanted:
            if time.monotonic() > deadline:
                self._say(f"only {working} of {wanted} workers have started; waiting for the others")
                deadline = float("inf")
            await asyncio.sleep(0.1)
        await self._flower_answers()
        for line in self._ready_lines():
            self._say(line)

    def _workers_at_work(self) -> int:
        """How many of our own processes have told the ledger that they work."""
        ours = {running.pid for group in self._supervisor.groups for running in group}
        with contextlib.suppress(DatabaseUnavailable):
            return sum(worker.pid in ours for worker in self._ledger.live_workers(within_seconds=30))
        return 0

    async def _flower_answers(self) -> None:
        port, deadline = self._plan.flower_port, time.monotonic() + READY_SECONDS
        while port is not None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.1)

    def _ready_lines(self) -> list[str]:
        plan = self._plan
        servers = ", ".join(
            f"{server.name} ({server.host}:{server.port}, weight {server.weight})"
            for server in plan.settings.servers
        )
        lines = [f"ready: {plan.processes} worker(s) for each of {servers}, and one control worker"]
        if plan.flower_port is not None:
            lines.append(
                f"Flower: http://{os.environ.get('FLOWER_ADDRESS') or '127.0.0.1'}:{plan.flower_port}"
            )
        lines.append(
            "send: campaigns send NAME --from ADDRESS --subject TEXT --html FILE --recipients CSV --watch"
        )
        return [*lines, "Ctrl-C ends it gracefully"]


def _free_port(preferred: int) -> int:
    """The preferred port of the loopback address, or any other where that one is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise CampaignsError("no free port on 127.0.0.1 for Flower")
