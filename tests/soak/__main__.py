"""Random faults on a stream of campaigns; at the end everything is healed and judged.

    python -m tests.soak [--minutes 30] [--seed N] [--postgresql] [--pace 4500]

The schedule of faults is a pure function of seed and minutes and is printed first: the same two plan the same
faults at the same times. What mail they meet differs from run to run. Exits with 1, and leaves its directory,
if anything of the promise was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import pickle
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from campaigns.states import Status
from tests.postgres import postgres_server
from tests.soak.faults import Saboteur
from tests.soak.installation import Installation
from tests.soak.lanes import Lane, Log
from tests.soak.schedule import LANES, Planned, schedule
from tests.soak.traffic import Traffic, insist
from tests.soak.verdict import Verdict, verdict
from tests.stateful.defects import BREAK_A_RULE, BREAK_THE_PROMISE

TELL_SECONDS = 30.0
SETTLE_SECONDS = 120.0
DEFECTS = sorted(defect.__name__ for defect in (*BREAK_THE_PROMISE, *BREAK_A_RULE))
OVER = {Status.FINISHED, Status.CANCELLED}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    plans = schedule(options.seed, options.minutes * 60, dialect=dialect(options))
    say(f"seed {options.seed}: {options.minutes:g} minutes on {dialect(options)}")
    print("\n".join(str(planned) for planned in plans), flush=True)
    if options.schedule:
        say("a function of seed and minutes: a longer soak begins as a shorter one, and goes on")
        return 0
    directory = Path(tempfile.mkdtemp(prefix="campaigns-soak-"))
    found = soak(options, plans, directory)
    print(found.text())
    if found.is_good:
        shutil.rmtree(directory)
        say(f"seed {options.seed}: nobody was lost, and nobody was served twice")
        return 0
    postgresql = " POSTGRESQL=1" if options.postgresql else ""
    (directory / "history.pickle").write_bytes(pickle.dumps(found.history))
    say(f"BROKEN; everything is in {directory}, what is judged in history.pickle")
    say(f"again: make soak MINUTES={options.minutes:g} SEED={options.seed}{postgresql}")
    return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, default=30.0)
    parser.add_argument("--seed", type=int, help="left out: a new one, which is printed")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--pace", type=float, default=4500.0, help="mails a minute on the average")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, help="seconds after the healing")
    parser.add_argument(
        "--schedule", action="store_true", help="print the schedule alone, of seed and minutes"
    )
    parser.add_argument(
        "--broken", choices=DEFECTS, metavar="DEFECT", help="one for the workers, which the soak must find"
    )
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(1_000_000)
    return options


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no length of a soak; it must be more than 0")
    return minutes


def dialect(options: argparse.Namespace) -> str:
    return "postgresql" if options.postgresql else "sqlite"


def soak(options: argparse.Namespace, plans: Sequence[Planned], directory: Path) -> Verdict:
    """From the first process to the verdict."""
    log, ending = Log(), threading.Event()
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(postgres_server()) if options.postgresql else None
        installation = stack.enter_context(Installation(directory, postgres=postgres, broken=options.broken))
        installation.wait_for_workers(len(installation.slots))
        traffic = Traffic(installation.ledger, seed=options.seed, pace=options.pace)
        saboteur = Saboteur(installation)
        lanes = [
            Lane(name, plans, log, slot=installation.slots.get(name), saboteur=saboteur, ending=ending)
            for name in LANES
        ]
        started_at = time.monotonic()
        traffic.start()
        for lane in lanes:
            lane.start(started_at)
            stack.callback(lane.close)
        try:
            watch(installation, traffic, log, until=started_at + options.minutes * 60)
        except KeyboardInterrupt:
            say("ends early")
        ending.set()
        for lane in lanes:
            lane.wait()
        traffic.end()
        saboteur.heal()
        say("everything is healed")
        rest(installation, options.settle)
        say("judging")
        return verdict(installation, traffic, log, settle_seconds=options.settle)


def watch(installation: Installation, traffic: Traffic, log: Log, *, until: float) -> None:
    """A line now and then."""
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, TELL_SECONDS))
        alive = insist(traffic.alive)
        say(
            f"{traffic.added:,} recipients, {alive:,} alive; {len(log.injected)} injections,"
            f" {len(log.refused)} not possible, {len(log.troubles)} troubles"
        )


def rest(installation: Installation, seconds: float) -> None:
    """Until all campaigns are over; if they are not in time, the checker says what is wrong with them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        campaigns = insist(installation.ledger.campaigns)
        if all(campaign.status in OVER for campaign in campaigns):
            return
        time.sleep(0.5)
    statuses = Counter(str(campaign.status) for campaign in installation.ledger.campaigns())
    say(f"not everything came to rest within {seconds:g} s: {dict(statuses)}")


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
