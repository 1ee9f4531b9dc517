"""How each kind of fault is done, and healed again: a context manager each, by lane and kind."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text

from campaigns.client import Client
from campaigns.errors import TransitionRefused
from campaigns.states import Status
from tests.faults.proxy import BOTH, TO_CLIENT, BadNetwork
from tests.soak.installation import Installation, Slot, send_signal
from tests.soak.schedule import SERVERS, WORKERS, Planned
from tests.soak.traffic import insist

__all__ = ["DRILL_DOMAIN", "NotDone", "Saboteur", "doubtful"]

DRILL_DOMAIN = "drill.example.com"
SEEDS = 3
ASLEEP_SECONDS = 8.0
"""Longer than a lease."""
_IN_STATE = (
    "SELECT DISTINCT c.id, c.name FROM delivery AS d JOIN campaign AS c ON c.id = d.campaign_id"
    " WHERE d.state = :state AND c.purpose = 'campaign' AND c.status <> 'cancelled' ORDER BY c.id"
)
_RUNNING = "SELECT id, name FROM campaign WHERE status = :state AND purpose = 'campaign' ORDER BY id"

Fault = AbstractContextManager[None]


class NotDone(Exception):  # noqa: N818 - it says what happened
    """It could not be done now; for instance there was no campaign to do it to."""


class Saboteur:
    """`with saboteur.doing(planned): ...` from a thread that lives as long as the installation."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        (installation.directory / "seeds.csv").write_text(
            "email\n" + "".join(f"seed{number}@{DRILL_DOMAIN}\n" for number in range(SEEDS))
        )

    def doing(self, planned: Planned) -> Fault:
        """Begins with the block and is healed at its end. Raises NotDone."""
        name = planned.kind.replace("-", "_")
        group = "worker" if planned.lane in WORKERS else "server" if planned.lane in SERVERS else planned.lane
        make: Callable[..., Fault] = getattr(self, f"_{group}_{name}")
        return make(planned, **planned.details)

    # ---- workers

    def _slot(self, planned: Planned) -> Slot:
        return self._installation.slots[planned.lane]

    @contextmanager
    def _worker_kill(self, planned: Planned) -> Iterator[None]:
        slot = self._slot(planned)
        slot.kill()
        yield
        slot.start()

    @contextmanager
    def _worker_end(self, planned: Planned) -> Iterator[None]:
        slot = self._slot(planned)
        try:
            slot.end()
            yield
        finally:
            slot.start()

    @contextmanager
    def _worker_stop(self, planned: Planned) -> Iterator[None]:
        with self._slot(planned).stopped():
            yield

    @contextmanager
    def _worker_doom(self, planned: Planned, point: str, passage: int) -> Iterator[None]:
        """It is killed at that point, if it comes to it in time."""
        slot = self._slot(planned)
        slot.kill()
        slot.start(f"kill:{point}:{passage}")
        slot.wait(planned.seconds, until=slot.is_dead)
        yield
        slot.kill()
        slot.start()

    @contextmanager
    def _worker_doze(self, planned: Planned, point: str, passage: int) -> Iterator[None]:
        """It falls asleep at that point, if it comes to it in time, for longer than its lease.

        One that comes to it later would sleep for ever, and nobody would know why.
        """
        slot = self._slot(planned)
        slot.kill()
        slot.start(f"stop:{point}:{passage}")
        sleeps = slot.wait(planned.seconds, until=slot.is_asleep)
        if sleeps:
            time.sleep(ASLEEP_SECONDS)
        yield
        if sleeps:
            slot.wake()
        else:
            slot.kill()
            slot.start()

    # ---- mail servers and the way to them

    def _network(self, planned: Planned) -> BadNetwork:
        return self._installation.networks[planned.lane]

    @contextmanager
    def _server_kill(self, planned: Planned) -> Iterator[None]:
        server = self._installation.servers[planned.lane]
        server.kill()
        yield
        insist(server.restart)
        insist(partial(self._installation.behave, server))

    @contextmanager
    def _server_suspend(self, planned: Planned) -> Iterator[None]:
        server = self._installation.servers[planned.lane]
        server.suspend()
        yield
        server.resume()

    @contextmanager
    def _server_misbehave(self, planned: Planned, phase: str, action: str, **rule: Any) -> Iterator[None]:
        server = self._installation.servers[planned.lane]
        server.set(phase, action, **rule)
        yield
        insist(partial(self._installation.behave, server))

    @contextmanager
    def _weather(self, planned: Planned, *, is_broken_off: bool = True, **weather: Any) -> Iterator[None]:
        network = self._network(planned)
        network.be(**weather)
        yield
        if is_broken_off:  # bytes are missing: no network goes on after that
            insist(network.reset)
        insist(network.heal)

    def _server_hold(self, planned: Planned, way: str) -> Fault:
        held = BOTH if way == "both" else frozenset({way})
        return self._weather(planned, is_broken_off=False, held=held)

    def _server_lose(self, planned: Planned, way: str) -> Fault:
        return self._weather(planned, lost=frozenset({way}))

    def _server_cut(self, planned: Planned, way: str, octets: int) -> Fault:
        return self._weather(planned, cut=way, cut_at=octets)

    def _server_slow(self, planned: Planned, latency: float) -> Fault:
        return self._weather(planned, is_broken_off=False, latency_seconds=latency)

    @contextmanager
    def _server_reset(self, planned: Planned) -> Iterator[None]:
        self._network(planned).reset()
        yield

    @contextmanager
    def _server_refuse(self, planned: Planned) -> Iterator[None]:
        network = self._network(planned)
        network.refuse()
        network.reset()
        yield
        insist(network.listen)

    # ---- the broker

    @contextmanager
    def _broker_kill(self, planned: Planned, *, keeps: bool) -> Iterator[None]:
        broker = self._installation.broker
        broker.kill()
        if not keeps:
            for file in (broker.directory / "appendonlydir").glob("*"):
                file.unlink()
        yield
        insist(broker.start)

    @contextmanager
    def _broker_flush(self, planned: Planned) -> Iterator[None]:
        with self._installation.broker_client() as client:
            client.flushall()
        yield

    @contextmanager
    def _broker_suspend(self, planned: Planned) -> Iterator[None]:
        broker = self._installation.broker
        send_signal(broker.pid, signal.SIGSTOP)
        yield
        send_signal(broker.pid, signal.SIGCONT)

    @contextmanager
    def _broker_full(self, planned: Planned) -> Iterator[None]:
        self._limit_memory(1)
        yield
        insist(partial(self._limit_memory, 0))

    def _limit_memory(self, octets: int) -> None:
        with self._installation.broker_client() as client:
            client.config_set("maxmemory", octets)

    # ---- the database

    @contextmanager
    def _database_lock(self, planned: Planned) -> Iterator[None]:
        file = self._installation.database_file
        with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.rollback()

    @property
    def _postgres(self) -> Any:
        return self._installation.postgres

    @contextmanager
    def _database_kill(self, planned: Planned) -> Iterator[None]:
        self._postgres.stop(signal.SIGQUIT)
        yield
        insist(self._postgres.start)

    @contextmanager
    def _database_read_only(self, planned: Planned) -> Iterator[None]:
        self._configure("default_transaction_read_only = on")
        yield
        insist(partial(self._configure, "default_transaction_read_only = off"))

    def _configure(self, setting: str) -> None:
        self._postgres.execute(f"ALTER SYSTEM SET {setting}")
        self._postgres.execute("SELECT pg_reload_conf()")

    @property
    def _database_way(self) -> BadNetwork:
        network = self._installation.database_network
        assert network is not None
        return network

    @contextmanager
    def _database_hold(self, planned: Planned) -> Iterator[None]:
        self._database_way.be(held=BOTH)
        yield
        insist(self._database_way.heal)

    @contextmanager
    def _database_reset(self, planned: Planned) -> Iterator[None]:
        self._database_way.reset()
        yield

    @contextmanager
    def _database_unanswered(self, planned: Planned, times: int) -> Iterator[None]:
        """Replies to COMMIT are lost."""
        network = self._database_way
        network.be(unanswered=b"COMMIT", unanswered_times=network.unanswered + times)
        yield
        insist(network.heal)

    # ---- the operator

    @contextmanager
    def _client(self) -> Iterator[Client]:
        with Client(self._installation.settings) as client:
            yield client

    def _pick(self, pick: float, state: str, sql: str = _RUNNING) -> str:
        with self._installation.database.read() as connection:
            names = [row.name for row in connection.execute(text(sql), {"state": state})]
        if not names:
            raise NotDone(f"no campaign is {state}")
        return str(names[min(int(pick * len(names)), len(names) - 1)])

    @contextmanager
    def _operator_pause(self, planned: Planned, pick: float) -> Iterator[None]:
        name = self._pick(pick, Status.RUNNING)
        with self._client() as client:
            client.campaign(name).pause()
            yield
            with contextlib.suppress(TransitionRefused):
                insist(client.campaign(name).resume)

    @contextmanager
    def _operator_cancel(self, planned: Planned, pick: float) -> Iterator[None]:
        name = self._pick(pick, Status.RUNNING)
        with self._client() as client:
            insist(client.campaign(name).cancel)
            yield

    @contextmanager
    def _operator_retry(self, planned: Planned, state: str, pick: float) -> Iterator[None]:
        name = self._pick(pick, state, _IN_STATE)
        with self._client() as client:
            client.campaign(name).retry(state)
            yield

    def _operator_drain(self, planned: Planned, server: str) -> Fault:
        return self._mode(server, "drained")

    def _operator_close(self, planned: Planned, server: str) -> Fault:
        return self._mode(server, "closed")

    @contextmanager
    def _mode(self, server: str, mode: Any) -> Iterator[None]:
        with self._client() as client:
            client.set_server_mode(server, mode, reason="soak")
            yield
            insist(partial(client.set_server_mode, server, "open"))

    @contextmanager
    def _operator_weigh(self, planned: Planned, server: str, weight: int) -> Iterator[None]:
        with self._client() as client:
            client.set_server_weight(server, weight)
            yield
            insist(partial(client.set_server_weight, server, None))

    @contextmanager
    def _drills_drill(self, planned: Planned, server: str) -> Iterator[None]:
        seeds: Path = self._installation.directory / "seeds.csv"
        with self._client() as client:
            client.drill(seeds, server=server, sender="News <news@example.com>", seconds=planned.seconds)
            yield

    # ---- everything

    def heal(self) -> None:
        """Whatever may still be wrong is put right."""
        installation = self._installation
        for name, server in installation.servers.items():
            insist(installation.networks[name].heal)
            insist(server.resume if server.is_running else server.start)
            insist(partial(installation.behave, server))
        insist(installation.broker.start)
        insist(partial(self._limit_memory, 0))
        for slot in installation.slots.values():
            slot.look()
        with self._client() as client:
            for name in SERVERS:
                insist(partial(client.set_server_mode, name, "open"))
                insist(partial(client.set_server_weight, name, None))
            for campaign in installation.ledger.campaigns():
                if campaign.status is Status.PAUSED:
                    insist(client.campaign(campaign.name).resume)


def doubtful(planned: Planned) -> bool:
    """Whether a mail at its dot may stay uncertain for this."""
    if planned.lane in WORKERS:
        return planned.kind != "end"
    if planned.lane not in SERVERS or planned.kind == "slow":
        return False
    if planned.kind == "misbehave":
        return planned.details["phase"] in {"dot", "every", "body"} and planned.details["action"] != "reply"
    return planned.kind != "hold" or planned.details["way"] in {"both", TO_CLIENT}
