"""Holds what the mail servers wrote down against what the ledger says (pure)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Accepted", "Audit", "LedgerRow", "Summary"]


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A mail that a server wrote down before it answered 250: when (epoch seconds) and for whom."""

    at: float
    recipient: str


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """A delivery as the ledger has it; `rerouted_from` are the servers that it left for another one."""

    email: str
    state: str
    rerouted_from: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the demo prints, and as `--json` its object."""

    recipients: int
    sent: int
    failed: int
    accepted: Mapping[str, int]
    rerouted: int
    duplicates: int
    lost: int
    uncertain: int
    failover_seconds: float | None
    mails_per_second: float
    uncertain_accepted_by: Mapping[str, Sequence[str]]
    """Each uncertain mail, and the servers whose records have it: none if the server never took it."""
    sent_but_not_accepted: int

    @property
    def kept_the_promise(self) -> bool:
        """Nobody lost, nobody served twice, and every `sent` stands in a server's records."""
        return not (self.lost or self.duplicates or self.sent_but_not_accepted)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """`records` by server; `killed_at` and `victim` tell when which server was killed, if one was."""

    recipients: int
    rows: Sequence[LedgerRow]
    records: Mapping[str, Sequence[Accepted]]
    victim: str | None = None
    killed_at: float | None = None

    def summary(self) -> Summary:
        """Count. Duplicates are counted in the servers' records, whatever the ledger believes."""
        states = Counter(row.state for row in self.rows)
        times = Counter(record.recipient for _, record in self._all_records())
        return Summary(
            recipients=self.recipients,
            sent=states["sent"],
            failed=states["failed"],
            accepted={server: len(records) for server, records in self.records.items()},
            rerouted=sum(bool(row.rerouted_from) for row in self.rows),
            duplicates=sum(count - 1 for count in times.values()),
            lost=self.recipients - sum(states[state] for state in _SERVED),
            uncertain=states["uncertain"],
            failover_seconds=self._failover_seconds(),
            mails_per_second=self._mails_per_second(),
            uncertain_accepted_by=self._uncertain(),
            sent_but_not_accepted=sum(row.state == "sent" and not times[row.email] for row in self.rows),
        )

    def _all_records(self) -> Iterable[tuple[str, Accepted]]:
        return ((server, record) for server, records in self.records.items() for record in records)

    def _failover_seconds(self) -> float | None:
        """From the kill to the first mail that left the victim and that another server accepted."""
        if self.killed_at is None:
            return None
        moved = {row.email for row in self.rows if self.victim in row.rerouted_from}
        waits = [
            record.at - self.killed_at
            for server, record in self._all_records()
            if server != self.victim and record.recipient in moved and record.at >= self.killed_at
        ]
        return round(min(waits), 3) if waits else None

    def _mails_per_second(self) -> float:
        times = [record.at for _, record in self._all_records()]
        span_seconds = max(times) - min(times) if times else 0.0
        return round(len(times) / span_seconds, 1) if span_seconds else 0.0

    def _uncertain(self) -> dict[str, list[str]]:
        return {
            row.email: sorted(s for s, record in self._all_records() if record.recipient == row.email)
            for row in self.rows
            if row.state == "uncertain"
        }


_SERVED = ("sent", "failed", "suppressed", "cancelled", "uncertain")
