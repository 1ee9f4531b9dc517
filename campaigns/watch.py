"""Follows a campaign: live on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from campaigns.errors import DatabaseUnavailable
from campaigns.progress import Progress
from campaigns.server_status import ServerStatus
from campaigns.states import ALIVE, FINAL, State, Status

REFRESH_SECONDS = 0.5
LINE_SECONDS = 5.0
_BAD = frozenset({State.FAILED, State.UNCERTAIN})
_ALWAYS_SHOWN = frozenset({*ALIVE, State.SENT, State.FAILED, State.UNCERTAIN})
_HEALTH_STYLES = {"closed": "green", "half-open": "yellow", "open": "red"}


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown at one moment. `note` is what the operator should know, such as that no worker runs."""

    progress: Progress
    servers: Sequence[ServerStatus]
    note: str = ""

    @property
    def has_pace(self) -> bool:
        """Whether to show a rate and the time left: not where it stands still, and `note` says why."""
        return self.progress.status is Status.RUNNING and not (
            self.note and not self.progress.rate_per_second
        )


def watch(read: Callable[[], View], *, file: TextIO | None = None) -> Progress:
    """Shows the campaign until it is finished or cancelled, and returns its last progress.

    An outage of the database is waited out. KeyboardInterrupt comes through; the campaign goes on.
    """
    stream = file or sys.stdout
    console = Console(file=stream, highlight=False)
    return _watch_live(read, console) if console.is_terminal else _watch_lines(read, stream)


def _views(read: Callable[[], View]) -> Iterator[View | DatabaseUnavailable]:
    while True:
        try:
            view = read()
        except DatabaseUnavailable as error:
            yield error
        else:
            yield view
            if view.progress.is_over:
                return
        time.sleep(REFRESH_SECONDS)


def _watch_live(read: Callable[[], View], console: Console) -> Progress:
    last: View | None = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for view in _views(read):
            if isinstance(view, View):
                last = view
                live.update(render(view), refresh=True)
            else:
                live.update(
                    Group(render(last) if last else "", Text(str(view), style="yellow")), refresh=True
                )
    assert last is not None
    return last.progress


def _watch_lines(read: Callable[[], View], stream: TextIO) -> Progress:
    printed_at, printed, last = 0.0, "", None
    for view in _views(read):
        line = line_of(view) if isinstance(view, View) else str(view)
        last = view if isinstance(view, View) else last
        is_last = isinstance(view, View) and view.progress.is_over
        if line != printed and (is_last or time.monotonic() - printed_at >= LINE_SECONDS):
            print(line, file=stream, flush=True)
            printed_at, printed = time.monotonic(), line
    assert last is not None
    return last.progress


def line_of(view: View) -> str:
    """One line: `spring running  1,200/2,000  sent 1,190 ...`."""
    progress = view.progress
    shown = [state for state in State if progress.counts.get(state)]
    counts = "  ".join(f"{state} {progress.counts[state]:,}" for state in shown)
    parts = [f"{progress.name} {progress.status}", f"{progress.done:,}/{progress.total:,}", counts]
    parts.append(_pace(view))
    parts += [f"{server.name} is {server.state_text}" for server in view.servers if server.is_amiss]
    return "  ".join(part for part in (*parts, progress.reason or "", view.note) if part)


def render(view: View) -> RenderableType:
    """Title, bar, counts, servers, note."""
    progress = view.progress
    title = Text.assemble(
        (progress.name, "bold"), "  ", (str(progress.status), _status_style(progress.status))
    )
    if progress.reason:
        title.append(f"  {progress.reason}", style="yellow")
    bar = ProgressBar(
        total=max(progress.total, 1), completed=progress.done if progress.total else 1, width=46
    )
    percent = 100 * progress.done / progress.total if progress.total else 100.0
    head = Table.grid(padding=(0, 1))
    head.add_row(bar, f"{percent:3.0f} %", f"{progress.done:,} of {progress.total:,}")
    parts: list[RenderableType] = [title, head, Text(_pace(view)), _counts(progress), _servers(view)]
    if view.note:
        parts.append(Text(view.note, style="yellow"))
    return Group(*parts)


def _pace(view: View) -> str:
    progress = view.progress
    eta, left, soon = progress.eta_seconds, "", ""
    if progress.status is Status.RUNNING and progress.waiting_text:
        soon = f"{progress.waiting_text}, the first in {clock_text(progress.waiting.first_seconds)}"
    if eta is not None:
        left = f"{clock_text(eta)} left"
    elif not soon:
        left = "no estimate yet"
    told = (f"{progress.rate_per_second:,.0f}/s", left) if view.has_pace else ()
    return "  ".join(part for part in (*told, soon) if part)


def clock_text(seconds: float) -> str:
    """`1:02:03`, `2:05`, `0:09`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def _counts(progress: Progress) -> Text:
    """Two lines, so that nothing jumps: who is under way, and who is served."""
    groups = ([state for state in State if state in group] for group in (ALIVE, FINAL))
    return Text("\n").join(_line_of_counts(progress, group) for group in groups)


def _line_of_counts(progress: Progress, states: Sequence[State]) -> Text:
    text = Text(no_wrap=True)
    for state in states:
        count = progress.counts.get(state, 0)
        if count or state in _ALWAYS_SHOWN:
            style = "red" if count and state in _BAD else "green" if state is State.SENT else ""
            text.append(f"{state} ").append(f"{count:,}", style=style).append("  ")
    return text


def _servers(view: View) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for name, justify in (("server", "left"), ("health", "left"), ("sent", "right"), ("share", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column("rerouted", justify="right", no_wrap=True)
    table.add_column("why", overflow="ellipsis", no_wrap=True, ratio=1)
    status = {server.name: server for server in view.servers}
    total = sum(server.sent for server in view.progress.servers.values())
    for name, counts in view.progress.servers.items():
        health = status.get(name)
        state = health.state if health else "not configured"
        table.add_row(
            name,
            Text(health.state_text if health else state, style=_HEALTH_STYLES.get(state, "")),
            f"{counts.sent:,}",
            f"{100 * counts.sent / total:.0f} %" if total else "-",
            f"{counts.rerouted:,}",
            Text(health.reason_text if health and state != "closed" else "", style="dim"),
        )
    return table


def _status_style(status: Status) -> str:
    return {Status.RUNNING: "green", Status.PAUSED: "yellow", Status.CANCELLED: "red"}.get(status, "bold")
