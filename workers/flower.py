"""Flower shows who gets mail, and can end workers: without authentication it is for this machine alone.

What it warns of while the workers start is no news.
"""

import ipaddress
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["UntilWorkersAnswer", "keep_flower_on_loopback"]

LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
"""For so long it is no news that a worker does not answer Flower."""

log = logging.getLogger(__name__)


class _LoopbackRule:
    """Holds whenever Flower has read its options: environment, command line, configuration file."""

    def __init__(self, options: Any) -> None:
        self._options = options
        self._asked: str | None = None

    def apply(self) -> None:
        """Put the address on loopback; put it back if a file that is read later brings authentication."""
        options = self._options
        if options.basic_auth or options.auth:
            if self._asked is not None and options.address == LOOPBACK:
                options.address = self._asked
            self._asked = None
        elif not options.unix_socket and not _is_loopback(options.address):
            if options.address:
                log.warning("Flower has no authentication and listens on %s alone", LOOPBACK)
            self._asked, options.address = options.address, LOOPBACK


class UntilWorkersAnswer(logging.Filter):
    """Flower asks the workers while they start, and warns of each question that nobody answered."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._ends_at = monotonic() + START_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """Drops these warnings alone, and only at the start: those with a cause are let through."""
        return record.msg != "Inspect method %s failed" or self._monotonic() >= self._ends_at


def keep_flower_on_loopback(options: Any = None) -> None:
    """Bind Flower to loopback unless basic_auth or auth is set. Where Flower is not loaded, do nothing.

    `options` is Tornado's parser (given in tests); its callbacks run after each reading of the options.
    """
    if options is None:
        flower = sys.modules.get("flower.options")  # the celery command has loaded it, if it is installed
        if flower is None:
            return
        options = flower.options
        logging.getLogger("flower.inspector").addFilter(UntilWorkersAnswer())
    options.add_parse_callback(_LoopbackRule(options).apply)


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
