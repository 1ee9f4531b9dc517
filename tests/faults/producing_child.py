"""A producer in a process of its own, which kills itself at a named point.

    python -m tests.faults.producing_child CONFIG POINT

POINT: before-enqueue, after-enqueue, half-published, after-publish, or never.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from campaigns import producer as producing
from campaigns.database import create_database
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger, QueuedDelivery
from campaigns.publishing import publish_deliveries
from campaigns.queues import create_app
from campaigns.settings import load_settings


def main(config: str, doomed_at: str) -> None:
    def at(point: str) -> None:
        if point == doomed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings(Path(config), {})
    app = create_app(settings)

    class DoomedLedger(Ledger):
        def enqueue(self, assignments: Sequence[tuple[int, str]]) -> list[QueuedDelivery]:
            at("before-enqueue")
            taken = super().enqueue(assignments)
            at("after-enqueue")
            return taken

    def publish(app: object, taken: Sequence[QueuedDelivery], *, ahead: bool = False) -> None:
        half = len(taken) // 2
        publish_deliveries(app, taken[:half])  # type: ignore[arg-type]
        at("half-published")
        publish_deliveries(app, taken[half:])  # type: ignore[arg-type]
        at("after-publish")

    producing.publish_deliveries = publish  # type: ignore[attr-defined]
    ledger = DoomedLedger(create_database(settings.database))
    producer = producing.Producer(ledger, app, settings, Fleet(settings, ledger, HealthBoard(None)))
    while producer.run_once():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
