"""How many connections a server takes from this process, learned from its own refusals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from campaigns.classifier import TOO_MANY_CONNECTIONS, classify
from campaigns.reply import SmtpResult

__all__ = ["Crowding", "is_too_many"]

log = logging.getLogger(__name__)

_GROWS_SECONDS = 60.0
_FORGOTTEN_SECONDS = 60.0


class Crowding:
    """Of one server. `most`: the connections that it takes; None: all `size` that may be, as far as is known.

    A refusal while some are open says how many it takes: so many. One is tried again each minute after. A
    refusal while none is open says only that others have them all: then one at a time asks.
    """

    def __init__(self, server: str, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most: int | None = None
        self._server = server
        self._size = size
        self._clock = clock
        self._learned: int | None = None
        self._learned_at = 0.0
        self._told = size
        self._shut_out_since: float | None = None
        self._shut_out_at = 0.0

    def __repr__(self) -> str:
        return f"<Crowding of {self._server}: {self.most or 'not known'}>"

    @property
    def shut_out_seconds(self) -> float:
        """For how long it has refused every connection, while this process had none."""
        return 0.0 if self._shut_out_since is None else self._clock() - self._shut_out_since

    def refused(self, open_count: int) -> None:
        """It takes no more than these."""
        now = self._clock()
        if open_count:
            self._shut_out_since = None
            self._learn(open_count)
            self._tell(open_count)
            return
        if self._shut_out_since is None or now - self._shut_out_at > _FORGOTTEN_SECONDS:
            self._shut_out_since = now
        self._shut_out_at = now
        self.most = 1

    def took(self, open_count: int) -> None:
        """It took another, and has so many now."""
        if self._shut_out_since is not None:
            self._shut_out_since = None
            self.most = self._learned
        if self._learned is not None and open_count > self._learned:
            self._learn(open_count)

    def grow(self) -> bool:
        """Whether one more may be tried from now on."""
        if self._learned is None or self._clock() - self._learned_at < _GROWS_SECONDS:
            return False
        self._learn(self._learned + 1)
        return True

    def _learn(self, count: int) -> None:
        self._learned = count if count < self._size else None
        self._learned_at = self._clock()
        if self._shut_out_since is None:
            self.most = self._learned

    def _tell(self, count: int) -> None:
        if count < self._told:
            self._told = count
            log.warning(
                "the server refuses more connections than %d of this process; its mail waits for these",
                count,
                extra={"server": self._server},
            )


def is_too_many(result: SmtpResult) -> bool:
    """Whether the server refused the connection because it has too many."""
    return result.reply is not None and classify(result).rule == TOO_MANY_CONNECTIONS
