"""The addresses that get nothing, whatever the campaign."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from campaigns.address import Address, normalise
from campaigns.csv_file import BadRow, Row, read_csv
from campaigns.errors import InvalidAddress
from campaigns.ledger import Suppressed

if TYPE_CHECKING:
    from campaigns.client import Client

_BATCH = 1000
_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class SuppressionReport:
    """What an import did: new ones, known ones, rejected lines with the first few of them and why."""

    added: int
    known: int
    rejected: int
    examples: tuple[tuple[int, str], ...] = ()


class Suppressions:
    """The list. Who is on it is added to campaigns as suppressed, and passed over where they wait already."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __repr__(self) -> str:
        return f"<Suppressions of {self._client!r}>"

    def __iter__(self) -> Iterator[Suppressed]:
        return iter(self._client.ledger.suppressions())

    def add(self, address: str, reason: str | None = None) -> bool:
        """Suppress one address; False if it was suppressed already. Raises InvalidAddress."""
        found = _checked(address)
        self._client.create_database_if_new()
        return bool(self._client.ledger.suppress([(found.dedupe_key, found.email, reason)]))

    def remove(self, address: str) -> bool:
        """Take one address off the list; False if it was not on it. Raises InvalidAddress."""
        return self._client.ledger.unsuppress(_checked(address).dedupe_key)

    def add_csv(self, path: Path | str, reason: str | None = None) -> SuppressionReport:
        """Suppress every address in a CSV file; its column `reason`, if any, goes before `reason`.

        Streamed; may be run again. Raises InvalidRecipients if the file is no usable list or is changed
        meanwhile; what was added stays.
        """
        self._client.create_database_if_new()
        rows = read_csv(Path(path)).rows()
        added = total = rejected = 0
        examples: list[tuple[int, str]] = []
        while batch := list(islice(rows, _BATCH)):
            judged = [_judged(row, reason) for row in batch]
            good = {one[0]: one for one in reversed(judged) if one[0]}  # the first of alike ones stays
            bad = [(row.line, why or "") for row, (key, _, why) in zip(batch, judged, strict=True) if not key]
            added += self._client.ledger.suppress(good.values())
            total += len(batch) - len(bad)
            rejected += len(bad)
            examples.extend(bad[: _EXAMPLES - len(examples)])
        return SuppressionReport(
            added=added, known=total - added, rejected=rejected, examples=tuple(examples)
        )


def _checked(address: str) -> Address:
    try:
        return normalise(address)
    except InvalidAddress as error:
        raise InvalidAddress(f"{address}: {error.reason}") from None


def _judged(row: Row | BadRow, reason: str | None) -> tuple[str, str, str | None]:
    """(dedupe key, address, reason); without a key the row is rejected, and the reason says why."""
    if isinstance(row, BadRow):
        return "", "", row.reason
    try:
        address = normalise(row.email)
    except InvalidAddress as error:
        return "", "", error.reason
    return address.dedupe_key, address.email, row.values.get("reason") or reason
