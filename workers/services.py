"""What the attempts of one worker process share: ledger, group commit, connections, leases, letters."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from celery import Celery

from campaigns.broker_outage import BrokerOutage
from campaigns.database import Database
from campaigns.errors import DatabaseUnavailable
from campaigns.fleet import Fleet
from campaigns.group_commit import GroupCommit
from campaigns.ledger import Ledger, Record, Renew
from campaigns.limits import Limits
from campaigns.queues import TaskResult, publish_deliveries
from campaigns.quotas import Quotas, Remembered
from campaigns.settings import Delivery, Settings
from workers.connections import ConnectionPool
from workers.deadlines import Deadlines
from workers.domains import Domains
from workers.journal import Journal
from workers.leases import LeaseKeeper
from workers.letters import Letters
from workers.pace import Pace
from workers.publisher import Publisher
from workers.standing import Standing
from workers.wait import AwakeClock

__all__ = ["Services"]

log = logging.getLogger(__name__)

PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Between two tries to reach a database that is away; the last one repeats."""
SETTLE_SECONDS = 20.0
"""At the end: how long outcomes may take to be recorded, or journaled."""


class Services:
    """Made on the worker's event loop. Nothing here is shared between processes but through the database,
    the broker and the health board."""

    def __init__(
        self, settings: Settings, app: Celery, database: Database, fleet: Fleet, *, owner: str
    ) -> None:
        self.settings = settings
        self.owner = owner
        self.database = database
        self.ledger: Ledger = fleet.ledger
        self.standing = Standing(fleet)
        self.group = GroupCommit(self.ledger.apply)
        self.leases = LeaseKeeper(self._renew, lease_seconds=settings.delivery.lease_seconds)
        self.letters = Letters(self.ledger)
        self.publisher = Publisher(
            partial(publish_deliveries, app, ahead=True), BrokerOutage(settings.broker_url)
        )
        self.journal = Journal(settings.data_directory / "journal", owner)
        self.awake = AwakeClock()
        self.outages = 0
        self.settling: set[asyncio.Task[TaskResult]] = set()
        self._kept = self._keeping = 0
        self._is_closing = False
        self.limits = Limits(settings.state_url, memory=Remembered(settings, self.ledger))
        self.quotas = Quotas(settings)
        self.pace = Pace(self.quotas, self.limits, self.standing.processes)
        self._domains = Domains(self.ledger)
        self._pools: dict[str, ConnectionPool] = {}
        self._database_up = asyncio.Event()
        self._database_up.set()
        self._recovery: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Services of {self.owner}: {self.leases!r}, {list(self._pools.values())!r}>"

    @property
    def delivery(self) -> Delivery:
        return self.settings.delivery

    @property
    def pools(self) -> Sequence[ConnectionPool]:
        return tuple(self._pools.values())

    def pool(self, server_name: str) -> ConnectionPool:
        if server_name not in self._pools:
            server = self.settings.server(server_name)
            self._pools[server_name] = ConnectionPool(
                server, Deadlines.from_delivery(self.delivery), size=server.connections
            )
        return self._pools[server_name]

    async def domain_of(self, delivery_id: int) -> str:
        """The recipient's domain, where it makes a difference. Raises DatabaseUnavailable."""
        if not (self.quotas.has_domain_limits or self.standing.has_blocks):
            return ""
        return await self._domains.of(delivery_id)

    async def database_ready(self) -> None:
        """Returns once the database answers and the journal was replayed."""
        await self._database_up.wait()

    def database_lost(self) -> None:
        """Say that the database did not answer: new claims wait until it does again."""
        if not self._is_closing and (self._recovery is None or self._recovery.done()):
            self._database_up.clear()
            self.outages += 1
            self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def keep(self, record: Record) -> None:
        """Journal an outcome that the database did not take. It is replayed before the next claim."""
        self._kept += 1
        self._keeping += 1
        try:
            await asyncio.to_thread(self.journal.append, record)
        except OSError:
            log.exception(
                "neither database nor journal took an outcome; it will be uncertain",
                extra={"delivery": record.delivery_id, "server": record.server},
            )
        finally:
            self._keeping -= 1
            self.database_lost()

    async def replay_journal(self) -> None:
        replayed = await asyncio.to_thread(self.journal.replay, self._apply_records)
        if replayed:
            log.info("outcomes from the journal were recorded", extra={"count": replayed})

    async def close(self) -> None:
        """In the order in which nothing is lost: connections, then what is still to be written."""
        if self.settling:
            await asyncio.wait(self.settling, timeout=SETTLE_SECONDS)
        self._is_closing = True
        if self._recovery is not None:
            self._recovery.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._recovery
        await asyncio.gather(*(pool.close_all() for pool in self.pools))
        await self.pace.close()
        await self._domains.close()
        await self.publisher.close()
        await self.group.close()
        self.journal.close()
        self.standing.close()
        self.limits.close()
        self.database.close()

    async def _renew(self, operations: Sequence[Renew]) -> Sequence[object]:
        return await asyncio.to_thread(self.ledger.apply, operations)

    def _apply_records(self, records: list[Record]) -> bool:
        """Whether the ledger took them all; those of another database with the same ids are not ours."""
        tokens = self.ledger.campaign_tokens([record.delivery_id for record in records])
        ours = [record for record in records if tokens.get(record.delivery_id) == record.campaign_token]
        refused = [result for result in self.ledger.apply(ours) if isinstance(result, Exception)]
        for error in refused:
            log.error("a journaled outcome was refused by the ledger: %s", type(error).__name__)
        if len(ours) < len(records):
            log.error("journaled outcomes are of another database", extra={"count": len(records) - len(ours)})
        return not refused and len(ours) == len(records)

    async def _recover(self) -> None:
        """New claims wait until the database answers, and until all that was kept meanwhile is replayed."""
        log.warning("the database does not answer; no new mail is claimed until it does")
        for pause_seconds in _repeat_last(PAUSES_SECONDS):
            await asyncio.sleep(pause_seconds)
            kept = self._kept
            try:
                await asyncio.to_thread(self.database.now)
                await self.replay_journal()
            except DatabaseUnavailable:
                continue
            except Exception:
                log.exception("the journal could not be replayed; the sweep tries again")
            if not self._keeping and kept == self._kept:
                break
        self._database_up.set()
        log.warning("the database answers again")


def _repeat_last(pauses: Sequence[float]) -> Iterator[float]:
    yield from pauses
    while True:
        yield pauses[-1]
