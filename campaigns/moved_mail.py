"""The log of mail that was moved: a line when it begins, and then one a minute that sums up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

__all__ = ["MovedMail"]

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0


class MovedMail:
    """`text` is what the lines say, `field` what the names are of: a server, or a stream."""

    def __init__(self, text: str, field: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._text, self._field = text, field
        self._monotonic = monotonic
        self._line_at: dict[str, float] = {}
        self._rest: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<MovedMail: {self._rest or 'nothing'} to be told>"

    def add(self, name: str, count: int, *, level: int = logging.INFO) -> None:
        """So much was moved. `level` is that of the line with which it begins; the others are INFO."""
        if not count:
            return
        self._rest[name] = self._rest.get(name, 0) + count
        if name not in self._line_at:
            self._tell(name, level)

    def sum_up(self, ongoing: Collection[str] = ()) -> None:
        """Call it now and then. After a minute of rest the next is a beginning, unless it is `ongoing`."""
        now = self._monotonic()
        for name in [name for name, at in self._line_at.items() if now - at >= LINE_SECONDS]:
            if name in self._rest:
                self._tell(name, logging.INFO)
            elif name not in ongoing:
                del self._line_at[name]

    def _tell(self, name: str, level: int) -> None:
        self._line_at[name] = self._monotonic()
        log.log(level, self._text, extra={self._field: name, "count": self._rest.pop(name)})
