"""One worker process at work: its attempts, and the loops that run beside them."""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from celery import Celery

from campaigns.broker_outage import BrokerOutage
from campaigns.database import create_database
from campaigns.drill_calendar import remind_of_drills
from campaigns.errors import BrokerError, CampaignsError, DatabaseUnavailable
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.limits import TURN
from campaigns.probing import Prober
from campaigns.producer import Producer
from campaigns.queues import TaskResult
from campaigns.settings import Settings
from campaigns.standby import StandbyKeeper
from campaigns.sweep import Sweeper
from workers.alerting import alertings
from workers.attempt import Attempt, Job
from workers.load import LoadMeter
from workers.own_thread import in_own_thread
from workers.services import Services
from workers.slowness import Slowness

__all__ = ["Runtime"]

T = TypeVar("T")

log = logging.getLogger(__name__)

HEALTH_SECONDS = 0.25
SLOWNESS_SECONDS = 0.25
HEARTBEAT_SECONDS = 1.0
PRODUCE_BUSY_SECONDS = 0.1
PRODUCE_IDLE_SECONDS = 0.8
PRODUCE_TURNS_PER_SECOND = 8.0
SWEEP_SECONDS = 1.0
SWEEP_TURNS_PER_SECOND = 2.0
"""Turns of all processes together."""
ALERT_SECONDS = 1.0
JOURNAL_SECONDS = 30.0
"""How often the journals of workers that died are looked for."""
DRILL_SECONDS = 60.0
PROBE_LOOK_SECONDS = 2.0
AGAIN_SECONDS = 1.0
"""After a step of a loop that failed."""
STANDBY_SECONDS = 1.0
STANDBY_END_SECONDS = 10.0
"""At the end: how long a standby's command may take to be ended, and its turn to be given back."""


class Runtime:
    """Runs the deliveries of one process that reads the queues of `servers` (none: a control worker)."""

    def __init__(self, settings: Settings, app: Celery, servers: Sequence[str]) -> None:
        self.settings = settings
        self.servers = tuple(servers)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        database = create_database(settings.database)
        ledger = Ledger(database, shard=os.getpid() % 8)
        names = [server.name for server in settings.servers]
        board = HealthBoard(settings.state_url, policy=settings.breaker, servers=names)
        fleet = Fleet(settings, ledger, board)
        self.producer = Producer(ledger, app, settings, fleet)
        self.sweeper = Sweeper(ledger, app, settings, fleet)
        self.services = Services(settings, app, database, fleet, owner=self.owner)
        self.prober = Prober(fleet)
        self.standbys = StandbyKeeper(fleet, owner=self.owner)
        self._alertings = alertings(settings.alerts, ledger)
        self._running: set[Attempt] = set()
        self._slowness = Slowness(self._running, self.services)
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._load = LoadMeter()
        self._outages_seen = 0
        self._broker_outage = BrokerOutage(settings.broker_url)
        self._producing = asyncio.Lock()
        self._sweeping = asyncio.Lock()
        self._moving: set[asyncio.Task[None]] = set()
        self.services.standing.when_opened(self._move_away)

    def __repr__(self) -> str:
        return f"<Runtime {self.owner}: {len(self._running)} attempts, {self.services!r}>"

    async def start(self) -> None:
        """Wait for the database, take over abandoned journals, and start the loops."""
        await self._wait_for_database()
        await self._once(self._beat)
        self._loops = [
            asyncio.create_task(loop)
            for loop in (
                self.services.leases.run(),
                self._every(HEALTH_SECONDS, self._look_at_health),
                self._every(SLOWNESS_SECONDS, self._slowness.look),
                self._every(HEARTBEAT_SECONDS, self._beat),
                self._produce(),
                self._every(SWEEP_SECONDS, self.sweep),
                self._every(JOURNAL_SECONDS, self.services.replay_journal),
                self._every(DRILL_SECONDS, self._look_at_drills),
                self._every(PROBE_LOOK_SECONDS, self._probe),
                *([self._every(STANDBY_SECONDS, self._look_after_standbys)] if self.standbys.servers else []),
                *(self._every(ALERT_SECONDS, channel.turn) for channel in self._alertings),
            )
        ]

    async def deliver(self, job: Job) -> TaskResult | None:
        """One attempt of one delivery. None: the worker is stopping and the message should go back."""
        if self._stopping:
            return None
        attempt = Attempt(job, self.services)
        self._running.add(attempt)
        self._idle.clear()
        try:
            result = await attempt.run()
        finally:
            self._running.discard(attempt)
            if not self._running:
                self._idle.set()
        if result is not None and result.state == "SUCCESS":
            self._load.sent(job.server)
        return result

    async def stop(self) -> None:
        """Warm shutdown: what is before the dot is abandoned, and free at once; the rest gets its grace."""
        self._stopping = True
        self.standbys.stop()
        for attempt in tuple(self._running):
            attempt.stop()
        await self._drain(self.settings.delivery.shutdown_seconds)
        for attempt in tuple(self._running):
            attempt.stop(even_at_the_dot=True)
        await self._drain(5.0)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await asyncio.to_thread(self.standbys.wait_until_at_rest, STANDBY_END_SECONDS)
        with contextlib.suppress(CampaignsError):
            await asyncio.to_thread(self.services.ledger.forget_worker, self.owner)
        self.producer.close()
        await self.services.close()

    async def produce(self) -> int:
        """One turn of the producer; how many deliveries were published."""
        async with self._producing:
            if not await self._has_turn("produce", PRODUCE_TURNS_PER_SECOND):
                return 0
            return await asyncio.to_thread(self.producer.run_once)

    async def sweep(self) -> None:
        """One turn of the sweep. After an outage it waits a lease before it judges anybody's."""
        async with self._sweeping:
            if not await self._has_turn("sweep", SWEEP_TURNS_PER_SECOND):
                return
            if self.services.outages != self._outages_seen:
                self._outages_seen = self.services.outages
                self.sweeper.hold_judgement(self.settings.delivery.lease_seconds)
            await asyncio.to_thread(self.sweeper.run_once)

    def _move_away(self, server: str) -> None:
        """This process opened the server's breaker: what waits there is moved now, not at the next turn."""
        task = asyncio.create_task(self._once(partial(self._reroute, server)))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    async def _reroute(self, server: str) -> None:
        async with self._sweeping:
            await asyncio.to_thread(self.sweeper.reroute, server)

    async def _has_turn(self, work: str, turns_per_second: float) -> bool:
        """Whether it is this process's turn: all may do this work, but not all at once, over the same rows.

        Nothing depends on it: while Redis is away, each process takes its turns alone.
        """
        name, burst_seconds = f"{TURN}{work}", 1 / turns_per_second
        take = partial(self.services.limits.take, name, turns_per_second, 1, burst_seconds=burst_seconds)
        return (await asyncio.to_thread(take)).granted > 0

    async def _drain(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    async def _wait_for_database(self) -> None:
        try:
            await asyncio.to_thread(self.services.database.check)
            await self.services.replay_journal()
        except DatabaseUnavailable:
            self.services.database_lost()
            await self.services.database_ready()

    async def _probe(self) -> None:
        await in_own_thread(self.prober.run_once, name="prober")

    async def _look_after_standbys(self) -> None:
        await in_own_thread(self.standbys.run_once, name="standby")

    async def _look_at_health(self) -> None:
        await self.services.standing.refresh()
        for pool in self.services.pools:
            self._load.look(pool.server_name, pool.busy_count, pool.size)
            await pool.close_expired()
            if not self.services.standing.is_needed(pool.server_name):
                await pool.close_idle()

    async def _look_at_drills(self) -> None:
        await asyncio.to_thread(remind_of_drills, self.settings, self.services.ledger)

    async def _beat(self) -> None:
        loads = self._load.beat()
        await asyncio.to_thread(
            self.services.ledger.heartbeat,
            self.owner,
            self.servers,
            host=socket.gethostname(),
            pid=os.getpid(),
            sent_per_second=sum(rate for rate, _ in loads.values()),
            loads=loads,
        )

    async def _produce(self) -> None:
        while True:
            published = await self._once(self.produce)
            pause_seconds = PRODUCE_BUSY_SECONDS if published else PRODUCE_IDLE_SECONDS
            await asyncio.sleep(_jittered(pause_seconds))

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_jittered(seconds))
            await self._once(step)

    async def _once(self, step: Callable[[], Awaitable[T]]) -> T | None:
        """Run a step of a loop. An outage is waited out, a surprise is logged, and the loop goes on."""
        try:
            return await step()
        except DatabaseUnavailable:
            self.services.database_lost()
            await self.services.database_ready()
        except BrokerError as error:
            self._broker_outage.refused(error)
            await asyncio.sleep(AGAIN_SECONDS)
        except Exception:
            log.exception(
                "a background step failed; it is tried again",
                extra={"step": getattr(step, "__name__", "reroute")},
            )
            await asyncio.sleep(AGAIN_SECONDS)
        return None


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
