"""Each lane is a thread that does what is planned for it, one fault after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from campaigns.errors import CampaignsError
from tests.soak.doubts import Injected
from tests.soak.faults import NotDone, Saboteur, doubtful
from tests.soak.installation import Slot
from tests.soak.schedule import SERVERS, Planned

__all__ = ["Lane", "Log"]

LOOK_SECONDS = 0.2


@dataclass
class Log:
    """What came of the plans. `refused`: not possible at that time; `troubles`: must not have happened."""

    injected: list[tuple[Planned, Injected]] = field(default_factory=list)
    refused: list[tuple[Planned, str]] = field(default_factory=list)
    troubles: list[tuple[Planned, str]] = field(default_factory=list)


class Lane:
    """`start` it; `ending` ends it early, after the fault that is on. It lives until `over` is set.

    What a thread starts ends with it, so the lanes stay until everything is judged.
    """

    def __init__(
        self,
        name: str,
        plans: Sequence[Planned],
        log: Log,
        *,
        slot: Slot | None,
        saboteur: Saboteur,
        ending: threading.Event,
    ) -> None:
        self._plans = [planned for planned in plans if planned.lane == name]
        self._slot = slot
        self._saboteur = saboteur
        self._log = log
        self._ending = ending
        self._over = threading.Event()
        self._done = threading.Event()
        self._name = name
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started_at = 0.0

    def start(self, started_at: float) -> None:
        """`started_at`: by the monotonic clock, the same for all lanes."""
        self._started_at = started_at
        self._thread.start()

    def wait(self) -> None:
        """Until all that was planned is done and healed."""
        self._done.wait()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        for planned in self._plans:
            self._rest_until(self._started_at + planned.at)
            if self._ending.is_set():
                break
            try:
                self._do(planned)
            except (NotDone, CampaignsError) as refusal:
                self._log.refused.append((planned, f"{type(refusal).__name__}: {refusal}"))
            except Exception as trouble:
                self._log.troubles.append((planned, f"{type(trouble).__name__}: {trouble}"))
        self._done.set()
        while not self._over.wait(LOOK_SECONDS):
            self._look()

    def _rest_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0 and not self._ending.is_set():
            self._look()
            self._ending.wait(min(left, LOOK_SECONDS))

    def _look(self) -> None:
        if self._slot is not None:
            self._slot.look()

    def _do(self, planned: Planned) -> None:
        began_at, began = time.time(), time.monotonic()
        pids = self._pids()
        try:
            with self._saboteur.doing(planned):
                pids |= self._pids()
                self._ending.wait(max(0.0, planned.seconds - (time.monotonic() - began)))
        finally:
            injected = Injected(
                kind=planned.kind,
                target=planned.lane,
                began_at=began_at,
                healed_at=time.time(),
                server=planned.lane if planned.lane in SERVERS and doubtful(planned) else None,
                pids=sorted(pids) if doubtful(planned) else (),
            )
        self._log.injected.append((planned, injected))

    def _pids(self) -> set[int]:
        return set() if self._slot is None else {self._slot.pid}
