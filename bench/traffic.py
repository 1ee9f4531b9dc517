"""Mail that flows until it is told to stop: a campaign, and smaller ones after it for as long as it takes."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from bench.installation import Installation
from campaigns.states import ALIVE, Status

SPARES = 6
SPARE_SIZE = 8_000
LEFT_TO_FOLLOW = 2_000
"""The next campaign begins when so few of the present one are left."""
LOOK_SECONDS = 0.25
END_SECONDS = 300.0


class Traffic:
    """`with Traffic(installation, 50_000) as traffic`: mail flows, until `end` has waited for the last one.

    All lists are imported before the first campaign begins. `names` are those that were sent.
    """

    def __init__(self, installation: Installation, recipients: int) -> None:
        self._installation = installation
        self._drafts = ["main", *(f"spare{number}" for number in range(SPARES))]
        for name in self._drafts:
            installation.add_campaign(name, recipients if name == "main" else SPARE_SIZE)
        self.names: list[str] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)

    def __enter__(self) -> Self:
        self._next()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def end(self) -> None:
        """Begin no more campaigns, and wait until those that were begun are finished, or for some minutes."""
        self._stopped.set()
        self._thread.join()
        deadline = time.monotonic() + END_SECONDS
        while not self._is_finished() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _keep_up(self) -> None:
        while self._drafts and not self._stopped.wait(LOOK_SECONDS):
            if self._left(self.names[-1]) < LEFT_TO_FOLLOW:
                self._next()

    def _next(self) -> None:
        name = self._drafts.pop(0)
        self._installation.client.campaign(name).send()
        self.names.append(name)

    def _left(self, name: str) -> int:
        """How many are still alive."""
        counts = self._installation.client.ledger.counts(name)
        return sum(counts.states[state] for state in ALIVE)

    def _is_finished(self) -> bool:
        statuses = [self._installation.client.ledger.counts(name).status for name in self.names]
        return all(status is Status.FINISHED for status in statuses)
