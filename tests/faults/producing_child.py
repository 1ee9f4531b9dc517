"""A producer in a process of its own, which kills itself at a named point.

    python -m tests.faults.producing_child CONFIG POINT DIRECTORY

POINT: before-enqueue, between-chunks, after-enqueue, half-published, after-publish, or never; or `together`,
which is never, and what is due is not queued before two producers have read it.

A split has several chunks of `CHUNK` deliveries. What was due and what of it was taken, the first time, is
written into DIRECTORY as JSON: `due-PID` and `taken-PID`.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from campaigns import producer as producing
from campaigns.database import create_database
from campaigns.fleet import Fleet
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger, QueuedDelivery, assignments
from campaigns.publishing import publish_deliveries
from campaigns.queues import create_app
from campaigns.settings import load_settings
from tests.acceptance.place import eventually

__all__ = ["CHUNK"]

CHUNK = 10
PRODUCERS = 2
MEETING_SECONDS = 120.0


class Notes:
    """What the producers of one test tell of themselves, the first time that each does it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, kind: str, delivery_ids: Sequence[int]) -> None:
        file = self._directory / f"{kind}-{os.getpid()}"
        if not file.exists():
            half_written = file.with_name(f"new-{file.name}")
            half_written.write_text(json.dumps(list(delivery_ids)))
            half_written.rename(file)

    def wait_for_all(self, kind: str) -> None:
        written = partial(self._directory.glob, f"{kind}-*")
        eventually(lambda: len(list(written())) >= PRODUCERS, seconds=MEETING_SECONDS, what="the other one")


def main(config: str, doomed_at: str, directory: str) -> None:
    def at(point: str) -> None:
        if point == doomed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings, notes = load_settings(Path(config), {}), Notes(Path(directory))
    app = create_app(settings)

    class DoomedLedger(Ledger):
        def enqueue(self, assigned: Sequence[tuple[int, str]]) -> list[QueuedDelivery]:
            notes.write("due", [delivery_id for delivery_id, _ in assigned])
            at("before-enqueue")
            if doomed_at == "together":
                notes.wait_for_all("due")
            taken = super().enqueue(assigned)
            notes.write("taken", [one.delivery_id for one in taken])
            at("after-enqueue")
            return taken

        def _changed_to_queued(self, *args: Any) -> list[QueuedDelivery]:
            taken = super()._changed_to_queued(*args)
            at("between-chunks")
            return taken

    def publish(app: object, taken: Sequence[QueuedDelivery], *, ahead: bool = False) -> None:
        half = len(taken) // 2
        publish_deliveries(app, taken[:half])  # type: ignore[arg-type]
        at("half-published")
        publish_deliveries(app, taken[half:])  # type: ignore[arg-type]
        at("after-publish")

    assignments.CHUNK = CHUNK  # type: ignore[attr-defined]
    producing.publish_deliveries = publish  # type: ignore[attr-defined, assignment]
    ledger = DoomedLedger(create_database(settings.database))
    producer = producing.Producer(ledger, app, settings, Fleet(settings, ledger, HealthBoard(None)))
    while producer.run_once():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
