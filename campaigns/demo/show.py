"""What a person sees of the demo: the campaign as it goes, what happened to the servers, the summary."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from campaigns.demo.audit import Summary
from campaigns.watch import View, line_of, render

__all__ = ["Show"]

LINE_SECONDS = 2.0


class Show:
    """On a terminal a live view; elsewhere lines; with `quiet`, nothing."""

    def __init__(
        self, console: Console, *, quiet: bool = False, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._quiet, self._now = console, quiet, now
        self._started = now()
        self._live: Live | None = None
        self._line_at = 0.0
        self._view: View | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def event(self, text: str, style: str = "") -> None:
        """Something happened that is worth a line of its own."""
        line = Text(f"{self._now() - self._started:6.1f} s  ", style="dim").append(text, style=style)
        if not self._quiet:
            self._console.print(line, soft_wrap=True)

    def update(self, view: View) -> None:
        """How the campaign stands now."""
        self._view = view
        if self._live is not None:
            self._refresh()
        elif not self._quiet and self._now() - self._line_at >= LINE_SECONDS:
            self._line_at = self._now()
            self._console.print(f"          {line_of(view)}", soft_wrap=True, highlight=False)

    def summary(self, summary: Summary) -> None:
        """The audit, and what it means."""
        if not self._quiet:
            self._console.print(_panel(summary))

    def _refresh(self) -> None:
        assert self._live is not None
        if self._view is not None:
            self._live.update(Group(Text(), render(self._view)), refresh=True)


def _panel(summary: Summary) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    for number, text, is_good in _findings(summary):
        style = "" if is_good is None else "bold green" if is_good else "bold red"
        table.add_row(Text(number, style=style), text)
    kept = summary.kept_the_promise
    title = "everybody was served, nobody twice" if kept else "THE PROMISE WAS BROKEN"
    if kept and (summary.uncertain or summary.failed):
        title = "nobody was lost, nobody got it twice"
    return Panel(
        Group(table, *_uncertain_lines(summary.uncertain_accepted_by)),
        title=title,
        border_style="green" if kept else "red",
        expand=False,
    )


def _findings(summary: Summary) -> list[tuple[str, str, bool | None]]:
    by_server = ", ".join(f"{name} {count:,}" for name, count in summary.accepted.items())
    failover = "-" if summary.failover_seconds is None else f"{summary.failover_seconds:.2f}"
    return [
        (f"{summary.recipients:,}", "recipients", None),
        (f"{summary.sent:,}", "sent, by the ledger", None),
        (f"{sum(summary.accepted.values()):,}", f"accepted, by the servers' own records: {by_server}", None),
        (f"{summary.rerouted:,}", "rerouted to the other server", None),
        (failover, "seconds from the kill to the first rerouted mail", None),
        (f"{summary.mails_per_second:,.0f}", "mails per second (the servers take their time)", None),
        (f"{summary.failed:,}", "failed", None),
        (f"{summary.uncertain:,}", "uncertain: the server died between the final dot and its reply", None),
        (f"{summary.duplicates:,}", "duplicates", summary.duplicates == 0),
        (f"{summary.lost:,}", "lost", summary.lost == 0),
        (
            f"{summary.sent_but_not_accepted:,}",
            "sent, but in no server's records",
            summary.sent_but_not_accepted == 0,
        ),
    ]


def _uncertain_lines(uncertain: Mapping[str, object]) -> list[Text]:
    lines = [Text()] if uncertain else []
    for email, servers in uncertain.items():
        names = ", ".join(servers) if isinstance(servers, list) and servers else ""
        found = f"the records of {names} have it" if names else "no server's records have it"
        lines.append(Text(f"uncertain: {email}: {found}", style="yellow"))
    return lines
