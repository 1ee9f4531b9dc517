"""What the commands print: tables for 80 columns, JSON alone on standard output, notes on standard error."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from campaigns.printable import printable

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON alone on standard output.")

STATE_STYLES = {
    "running": "green",
    "closed": "green",
    "sent": "green",
    "half-open": "yellow",
    "working": "green",
    "on trial": "yellow",
    "resting": "red",
    "full": "yellow",
    "drained by hand": "yellow",
    "closed by hand": "red",
    "paused": "yellow",
    "uncertain": "yellow",
    "open": "red",
    "failed": "red",
    "cancelled": "red",
}


_WHOLE = frozenset({"email", "since", "updated", "at", "server", "state", "status", "worker", "message-id"})
"""Columns that are not folded: a part of such a value is of no use."""
_LEAST_FOLDED = 12
"""No other column is made narrower than this, or than its longest cell."""
_GAP = 2
_NO_TERMINAL_COLUMNS = 100_000


def print_json(value: object) -> None:
    """One JSON document; ASCII alone, so that no locale can break it."""
    click.echo(json.dumps(value, indent=2))


def note(message: str) -> None:
    """Something to know that is no result: standard error, so that pipes and JSON stay clean."""
    click.echo("\n".join(printable(line) for line in message.split("\n")), err=True)


def console(*, stderr: bool = False, wide: bool = False) -> Console:
    """Colours on a terminal alone; elsewhere 80 columns, or `wide` enough for any line."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _NO_TERMINAL_COLUMNS if wide else 80
    return Console(file=stream, highlight=False, width=width, soft_wrap=not stream.isatty())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A plain table. Columns whose name ends in `>` are aligned to the right.

    On a terminal, long cells are folded, but never an address or a time; elsewhere nothing is, for grep.
    """
    if not rows:
        note(empty)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    least = 0
    for place, column in enumerate(columns):
        name, right = column.rstrip(">"), column.endswith(">")
        longest = max(len(name), *(row[place].cell_len for row in cells))
        whole = right or column in _WHOLE
        width = longest if whole else min(longest, _LEAST_FOLDED)
        least += width + _GAP
        justify: JustifyMethod = "right" if right else "left"
        table.add_column(name, justify=justify, min_width=width, no_wrap=whole, overflow="fold")
    for row in cells:
        table.add_row(*row)
    _print_lines(table, least)


def _print_lines(table: Table, least: int) -> None:
    """At least so wide: a terminal that is narrower breaks lines itself, and nothing is cut off."""
    screen = console(wide=True)
    if screen.is_terminal:
        screen.width = max(screen.width, least)
        screen.print(table, soft_wrap=False, crop=False)
        return
    with screen.capture() as captured:
        screen.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def _cell(value: object) -> Text:
    """Plain text, never markup: a campaign may be called `[bold]`. Control characters are not obeyed."""
    text = "" if value is None else str(value)
    clean = printable(text)
    return Text(clean, style=STATE_STYLES.get(clean, ""))


def iso(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, for JSON."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def local_time(seconds: float | None) -> str:
    """The operator's own time, for tables."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def short_time(seconds: float | None) -> str:
    """The same for narrow columns: without the date if it is today's."""
    told = local_time(seconds)
    return told.removeprefix(f"{datetime.now().astimezone():%Y-%m-%d} ")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 recipient`, `2,000 recipients`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def seconds_text(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12 s`; a dash while unknown."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def as_dicts(values: Sequence[Any]) -> list[dict[str, Any]]:
    """Values that know their own JSON."""
    return [value.to_dict() for value in values]


class _OneLine(logging.Formatter):
    """`warning: password file can be read by others: chmod 600 (file=...)`"""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _USUAL}
        fields = ", ".join(f"{key}={value}" for key, value in extra.items())
        text = f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({fields})" if fields else "")
        return printable(text)


_USUAL = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def prepare_streams() -> None:
    """A terminal that cannot show a letter is shown its number, instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_warnings() -> None:
    """Warnings of the package go to standard error, one line each."""
    logger = logging.getLogger("campaigns")
    for handler in [one for one in logger.handlers if isinstance(one.formatter, _OneLine)]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    # `servers` and `watch` say it in their own place.
    for name in ("campaigns.health", "campaigns.limits", "campaigns.fleet", "campaigns.allowance"):
        logging.getLogger(name).setLevel(logging.ERROR)
