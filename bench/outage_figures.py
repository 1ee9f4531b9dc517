"""What an outage did to the mail, from times that were written down; and the table of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

BIN_SECONDS = 0.5
BEFORE_SECONDS = 5.0
DIP = 0.5
"""Below this part of what went out before, mail is in a dip."""

Change = tuple[float, str, str]
"""When (epoch seconds), the kind of the event, and what it was changed to."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What was written down. Times are epoch seconds, None for what was never seen.

    `changes` are the primary's, in their order; `moved_off` the recipients that left the primary after the
    fault; `emptied_at` is when nothing was queued for the primary any more.
    """

    name: str
    target_seconds: float
    fault_at: float
    returned_at: float
    emptied_at: float | None
    changes: Sequence[Change]
    primary: Sequence[tuple[float, str]]
    secondary: Sequence[tuple[float, str]]
    moved_off: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds from the fault, and (the failback) from the primary's return; rates in mails a second.

    `lowest` and `alone` are parts of `usual`: the worst half second, and what the secondary did by itself
    from the breaker's opening to the primary's return.
    """

    name: str
    target_seconds: float
    to_secondary: float | None
    to_open: float | None
    to_emptied: float | None
    usual: float
    lowest: float | None
    dip_seconds: float
    alone: float | None
    to_half_open: float | None
    to_first_mail: float | None
    to_closed: float | None
    to_whole: float | None
    breaker_changes: int

    @property
    def met_target(self) -> bool:
        return self.to_secondary is not None and self.to_secondary <= self.target_seconds


def figures(outage: Outage) -> Figures:
    changes, returned_at = outage.changes, outage.returned_at
    opened_at = first_change(changes, "breaker", "open", outage.fault_at)
    both = [at for at, _ in (*outage.primary, *outage.secondary)]
    usual = rate(both, outage.fault_at - BEFORE_SECONDS, outage.fault_at)
    bins = binned(both, outage.fault_at, outage.returned_at)
    after = from_moment(outage.fault_at)
    back = from_moment(outage.returned_at)
    return Figures(
        name=outage.name,
        target_seconds=outage.target_seconds,
        to_secondary=after(first_moved(outage)),
        to_open=after(opened_at),
        to_emptied=after(outage.emptied_at),
        usual=round(usual, 1),
        lowest=part(min(bins, default=0.0), usual),
        dip_seconds=BIN_SECONDS * sum(1 for value in bins if value < DIP * usual),
        alone=None if opened_at is None else part(rate(both, opened_at, outage.returned_at), usual),
        to_half_open=back(first_change(changes, "breaker", "half-open", returned_at)),
        to_first_mail=back(first(at for at, _ in outage.primary if at >= outage.returned_at)),
        to_closed=back(first_change(changes, "breaker", "closed", returned_at)),
        to_whole=back(whole_at(changes, returned_at)),
        breaker_changes=sum(1 for _, kind, _ in changes if kind == "breaker"),
    )


def first_moved(outage: Outage) -> float | None:
    """When the secondary accepted the first mail that had left the primary after the fault."""
    return first(at for at, who in outage.secondary if at >= outage.fault_at and who in outage.moved_off)


def first_change(changes: Iterable[Change], kind: str, to: str, since: float) -> float | None:
    return first(at for at, *change in changes if change == [kind, to] and at >= since)


def whole_at(changes: Iterable[Change], returned_at: float) -> float | None:
    """When the server had its usual share again."""
    return first_change(changes, "share", "100 %", returned_at)


def first(times: Iterable[float]) -> float | None:
    return min(times, default=None)


def rate(times: Iterable[float], since: float, until: float) -> float:
    """Mails a second between two moments."""
    return sum(1 for at in times if since <= at < until) / (until - since) if until > since else 0.0


def binned(times: Iterable[float], since: float, until: float) -> list[float]:
    """Mails a second in each whole bin between two moments."""
    counts = Counter(int((at - since) / BIN_SECONDS) for at in times if at >= since)
    return [counts[number] / BIN_SECONDS for number in range(int((until - since) / BIN_SECONDS))]


def part(value: float, of: float) -> float | None:
    return round(value / of, 2) if of else None


def from_moment(moment: float) -> Callable[[float | None], float | None]:
    """Makes a time of that moment's seconds."""
    return lambda at: None if at is None else round(at - moment, 2)


FAILOVER = (
    "fault", "target", "first mail off the primary through the secondary", "breaker open",
    "nothing queued for the primary", "mails/s before", "lowest half second", "below half for",
    "secondary alone",
)  # fmt: skip
FAILBACK = (
    "fault", "first mail through the primary again", "breaker closed", "whole share again",
    "breaker changes", "lost", "twice", "uncertain",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of the mail, from the servers' records and the ledger."""

    lost: int
    duplicates: int
    uncertain: int
    at_the_dot: int
    """Mails between commit point and recorded reply when the fault began."""


def tables(rows: Sequence[tuple[Figures, Verdict]]) -> str:
    """In Markdown: from the fault; and from the primary's return, with what became of the mail."""
    failover = table(FAILOVER, [failover_cells(figures) for figures, _ in rows])
    return f"{failover}\n\n{table(FAILBACK, [failback_cells(*row) for row in rows])}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---" for _ in columns], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def failover_cells(outage: Figures) -> tuple[str, ...]:
    return (
        outage.name,
        f"{outage.target_seconds:g} s",
        seconds(outage.to_secondary),
        seconds(outage.to_open),
        seconds(outage.to_emptied),
        f"{outage.usual:.0f}",
        percent(outage.lowest),
        f"{outage.dip_seconds:.1f} s",
        percent(outage.alone),
    )


def failback_cells(outage: Figures, verdict: Verdict) -> tuple[str, ...]:
    return (
        outage.name,
        seconds(outage.to_first_mail),
        seconds(outage.to_closed),
        seconds(outage.to_whole),
        str(outage.breaker_changes),
        str(verdict.lost),
        str(verdict.duplicates),
        f"{verdict.uncertain} (of {verdict.at_the_dot} at the dot)",
    )


def seconds(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.2f} s"


def percent(value: float | None) -> str:
    return "not seen" if value is None else f"{value:.0%}".replace("%", " %")
