"""The absence of Redis or the broker: said once when it begins and once when it ends, whoever in a process
sees it."""

from __future__ import annotations

import logging
import threading
from functools import cache

from campaigns.errors import CampaignsError

__all__ = ["Absence", "absence_of"]


class Absence:
    """`gone` and `back` are the two lines. Safe to use from several threads. Times by any monotonic clock."""

    def __init__(self, log: logging.Logger, *, gone: str, back: str) -> None:
        self._log = log
        self._gone, self._back = gone, back
        self._until: float | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Absence: {'here' if self._until is None else 'away'}>"

    def goes_on(self, error: Exception, until: float) -> None:
        """It was not there, and is left alone `until` then."""
        with self._lock:
            is_new, self._until = self._until is None, until
        if is_new:
            is_ours = isinstance(error, CampaignsError)  # then it says what is wrong, and no secrets
            why = {"reason": str(error)} if is_ours else {"error": type(error).__name__}
            self._log.warning(self._gone, extra=why)

    def ends(self, now: float) -> None:
        """It answered; what was asked before it went away, and answered late, ends nothing."""
        if self._until is None:
            return
        with self._lock:
            is_over = self._until is not None and now >= self._until
            if is_over:
                self._until = None
        if is_over:
            self._log.warning(self._back)


@cache
def absence_of(state_url: str | None, log: logging.Logger, gone: str, back: str) -> Absence:
    """The one that this process keeps for that address and those lines."""
    return Absence(log, gone=gone, back=back)
