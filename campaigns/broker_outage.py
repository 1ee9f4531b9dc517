"""The log of a broker that takes no messages: in each process a line when it begins and one at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from campaigns.absence import absence_of
from campaigns.errors import BrokerError

__all__ = ["SETTLED_SECONDS", "BrokerOutage"]

log = logging.getLogger(__name__)

SETTLED_SECONDS = 10.0
"""An outage is over when nothing was refused for so long. A full broker is read as ever: only the messages
that it lacks tell, and those are looked for after some seconds."""
_GONE = "the broker takes no messages; what is queued is published when it does"
_BACK = "the broker takes messages again"


class BrokerOutage:
    """Whoever asks the broker says how it went. All of a process share one outage for one broker."""

    def __init__(self, broker_url: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._absence = absence_of(broker_url, log, _GONE, _BACK)
        self._monotonic = monotonic

    def __repr__(self) -> str:
        return f"<BrokerOutage: {self._absence!r}>"

    def refused(self, error: BrokerError) -> None:
        """It cannot be reached, or did not take what was published."""
        self._absence.goes_on(error, self._monotonic() + SETTLED_SECONDS)

    def served(self) -> None:
        """It took what was published, or holds all that it should."""
        self._absence.ends(self._monotonic())
