"""Real processes on one database: claimers, producers, sweepers, and one that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO

from campaigns.database import create_database
from campaigns.ledger import Ledger
from campaigns.states import State
from tests.crowd import Crowd, eventually

ROOT = Path(__file__).resolve().parents[3]

# Each program is told the database, prints JSON lines of what it did, and ends when nothing is left.
PRELUDE = """
import atexit, json, os, sys, time
from campaigns.database import create_database
from campaigns.ledger import Claim, Claimed, CommitPoint, Ledger, Record
from campaigns.states import State
ledger = Ledger(create_database(sys.argv[1]), shard=os.getpid() % 16)
owner = f"process-{os.getpid()}"
def tell(**what):
    print(json.dumps(what), flush=True)
def alive():
    return [c for c in ledger.campaigns() if ledger.counts(c.name).alive]
tell(ready=True)
sys.stdin.readline()
atexit.register(ledger.database.close)
"""
PRODUCER = (
    PRELUDE
    + """
while alive():
    due = ledger.due(40)
    taken = ledger.enqueue([(one.delivery_id, "primary") for one in due])
    tell(taken=[one.delivery_id for one in taken])
    time.sleep(0.002)
"""
)
WORKER = (
    PRELUDE
    + """
while alive():
    queued = ledger.stale_queued("primary", -1, 30)
    claims = [c for c in ledger.apply([Claim(delivery_id=q.delivery_id, server="primary", owner=owner,
              lease_seconds=1.5) for q in queued]) if isinstance(c, Claimed)]
    passed = ledger.apply([CommitPoint(delivery_id=c.delivery_id, fence=c.fence) for c in claims])
    sent = [c for c, ok in zip(claims, passed) if ok is True]
    tell(sent=[c.delivery_id for c in sent])
    ledger.apply([Record(delivery_id=c.delivery_id, fence=c.fence, server="primary", owner=owner,
                  to=State.SENT, outcome="sent") for c in sent])
    ledger.sweep_leases()
"""
)
HANGER = (
    PRELUDE
    + """
queued = ledger.stale_queued("primary", -1, 30)
claims = [c for c in ledger.apply([Claim(delivery_id=q.delivery_id, server="primary", owner=owner,
          lease_seconds=1.5) for q in queued]) if isinstance(c, Claimed)]
half = claims[: len(claims) // 2]
ledger.apply([CommitPoint(delivery_id=c.delivery_id, fence=c.fence) for c in half])
tell(claimed=[c.delivery_id for c in claims], committed=[c.delivery_id for c in half])
time.sleep(600)
"""
)


class Program:
    """One child process that runs a program on the database."""

    def __init__(self, program: str, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.lines: list[dict[str, list[int]]] = []

    @property
    def output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def ready(self) -> None:
        assert json.loads(self.output.readline()) == {"ready": True}

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def next(self) -> dict[str, list[int]]:
        self.lines.append(json.loads(self.output.readline()))
        return self.lines[-1]

    def finish(self) -> None:
        """Reads what it tells until it ends by itself."""
        self.lines += [json.loads(line) for line in self.output]
        assert self.process.wait(30) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def told(self, what: str) -> list[int]:
        return [one for line in self.lines for one in line.get(what, [])]


def run_together(programs: list[Program]) -> None:
    for program in programs:
        program.ready()
    for program in programs:
        program.go()
    for program in programs:
        program.finish()
        program.close()


def test_two_producers_and_two_claimers_serve_everybody_once(database_url: str) -> None:
    database = create_database(database_url)
    crowd = Crowd(Ledger(database), 400)
    producers = [Program(PRODUCER, database_url) for _ in range(2)]
    workers = [Program(WORKER, database_url) for _ in range(2)]
    run_together([*workers, *producers])
    taken = Counter(one for producer in producers for one in producer.told("taken"))
    sent = Counter(one for worker in workers for one in worker.told("sent"))
    assert taken == sent == Counter(crowd.ids)
    assert crowd.in_state(State.SENT) == 400
    assert len(crowd.attempts()) == 400
    database.close()


def test_a_worker_killed_in_the_middle_loses_nobody_and_doubles_nobody(database_url: str) -> None:
    database = create_database(database_url)
    crowd = Crowd(Ledger(database), 120)
    crowd.queue()
    hanger = Program(HANGER, database_url)
    hanger.ready()
    hanger.go()
    told = hanger.next()
    assert len(told["claimed"]) == 30 and len(told["committed"]) == 15
    hanger.kill()
    run_together(
        [
            Program(WORKER, database_url),
            worker := Program(WORKER, database_url),
            Program(PRODUCER, database_url),
        ]
    )
    assert not set(worker.told("sent")) & set(told["committed"])
    counts = crowd.counts()
    assert counts.states[State.UNCERTAIN] == 15 and counts.states[State.SENT] == 105
    uncertain = {one.id for one in crowd.ledger.deliveries(crowd.name, State.UNCERTAIN)}
    assert uncertain == set(told["committed"])
    database.close()


def test_a_process_killed_at_any_moment_leaves_whole_transactions(database_url: str) -> None:
    database = create_database(database_url)
    crowd = Crowd(Ledger(database), 300)
    for _ in range(3):
        victims = [Program(PRODUCER, database_url), Program(WORKER, database_url)]
        for victim in victims:
            victim.ready()
            victim.go()
        for victim in victims:
            victim.next()
            victim.kill()
        crowd.counts()
    run_together([Program(WORKER, database_url), Program(PRODUCER, database_url)])
    eventually(lambda: crowd.ledger.sweep_leases().pending == 0)
    counts = crowd.counts()
    assert counts.alive == 0
    assert counts.states[State.SENT] + counts.states[State.UNCERTAIN] == 300
    assert all(
        n == 1 for n in Counter(a["delivery_id"] for a in crowd.attempts() if a["outcome"] == "sent").values()
    )
    database.close()
