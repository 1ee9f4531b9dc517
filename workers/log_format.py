"""How a worker's log reads: one line a message, what happened in constant words, then its fields."""

import logging
import traceback
from typing import Any

from celery.signals import after_setup_logger

from campaigns.reply import redact

__all__ = ["FieldsFormatter", "redacted_traceback", "set_up_logging"]

LINE = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
"""As Celery writes it."""
KNOWN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "data"}
QUIET = {
    # a line for each task would be a line for each mail; the ledger and Flower tell the same
    "celery.worker.strategy": logging.WARNING,
    "alembic": logging.WARNING,
}


class FieldsFormatter(logging.Formatter):
    """Appends the fields given by `extra=` as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields = {name: value for name, value in record.__dict__.items() if name not in KNOWN}
        if not fields:
            return line
        first, newline, rest = line.partition("\n")
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{first} [{said}]{newline}{rest}"


def redacted_traceback(*addresses: str) -> str:
    """The exception that is being handled, as text without these addresses or any other."""
    lines = traceback.format_exc().splitlines()
    return "\n".join(
        f"{line[: len(line) - len(line.lstrip())]}{redact(line, known=addresses)}" for line in lines
    )


def set_up_logging() -> None:
    """Have Celery's loggers use the format, and be quiet about what happens for every mail."""
    after_setup_logger.connect(_format, weak=False)


def _format(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(FieldsFormatter(LINE))
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
