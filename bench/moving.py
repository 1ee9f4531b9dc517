"""How fast mail that waits for one server gets another.

    python -m bench.moving [--deliveries 20000] [--postgresql]

First the deliveries in the ledger alone, then a full window, with its messages in the broker. Prints seconds
as JSON. The exit status is 1 if the ledger took more than 5 s (on SQLite), or the window more than 2 s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.installation import CONFIGURATION, fresh_database
from campaigns.client import Client
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger, NewRecipient
from campaigns.local.broker import EmbeddedBroker
from campaigns.publishing import QueuedDelivery, publish_deliveries
from campaigns.queues import create_app
from campaigns.settings import Settings, load_settings
from campaigns.sweep import Sweeper
from campaigns.window import MOST

BATCH = 500
MOST_LEDGER_SECONDS = 5.0
MOST_WINDOW_SECONDS = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--postgresql", action="store_true")
    options = parser.parse_args()
    with fresh_database(postgresql=options.postgresql) as url:
        figures = measured(url, options.deliveries)
    print(json.dumps(figures, indent=2))
    is_slow = figures["ledger_seconds"] > MOST_LEDGER_SECONDS and not options.postgresql
    return 1 if is_slow or figures["window_seconds"] > MOST_WINDOW_SECONDS else 0


def measured(url: str, deliveries: int) -> dict[str, float]:
    with place(url) as settings, Client(settings) as client:
        client.upgrade_database()
        ledger = client.ledger
        ids = running_campaign(ledger, deliveries + MOST)
        ledger.enqueue([(one, "primary") for one in ids[:deliveries]])
        ledger_seconds = timed(lambda: move_in_the_ledger(ledger))
        window = ledger.enqueue([(one, "primary") for one in ids[deliveries:]])
        window_seconds = timed(mover(settings, ledger, window))
        assert ledger.queued_counts() == {"secondary": len(ids)}
    return {
        "deliveries": deliveries,
        "ledger_seconds": round(ledger_seconds, 2),
        "window": len(window),
        "window_seconds": round(window_seconds, 2),
    }


def running_campaign(ledger: Ledger, size: int) -> list[int]:
    """The ids of its deliveries."""
    campaign = ledger.create_campaign("moving", sender="news@example.com", subject="Hi", text="Hello")
    for start in range(0, size, BATCH):
        numbers = range(start, min(start + BATCH, size))
        ledger.add_recipients(campaign.id, [recipient(number) for number in numbers])
    ledger.send("moving")
    return [delivery.id for delivery in ledger.deliveries("moving")]


def recipient(number: int) -> NewRecipient:
    domain = f"d{number % 50}.example.com"
    email = f"r{number}@{domain}"
    return NewRecipient(email=email, dedupe_key=email, domain=domain, fields={})


def move_in_the_ledger(ledger: Ledger) -> None:
    while ledger.reroute_queued("primary", {"secondary": 30.0}):
        pass


def mover(settings: Settings, ledger: Ledger, window: Sequence[QueuedDelivery]) -> Callable[[], object]:
    """Publishes the window; what it returns does as the sweep does when the primary is given up."""
    app = create_app(settings)
    publish_deliveries(app, window)
    fleet = Fleet(settings, ledger, HealthBoard(settings.state_url))
    return partial(Sweeper(ledger, app, settings, fleet).reroute, "primary")


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@contextmanager
def place(url: str) -> Iterator[Settings]:
    """A configuration and a broker; nobody listens at the servers' ports, for nothing is sent."""
    with tempfile.TemporaryDirectory(prefix="campaigns-bench-") as folder, ExitStack() as stack:
        path = Path(folder) / "campaigns.toml"
        database = url or f"sqlite:///{folder}/campaigns.db"
        path.write_text(CONFIGURATION.format(database=database, primary=1, secondary=2, connections=20))
        settings = load_settings(path, {})
        broker = EmbeddedBroker.of(settings)
        broker.start()
        stack.callback(broker.kill)
        yield settings


if __name__ == "__main__":
    sys.exit(main())
