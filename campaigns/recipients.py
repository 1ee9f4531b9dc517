"""Adding recipients to a campaign: streamed, in batches, taken up again where a kill interrupted it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaigns.address import normalise
from campaigns.csv_file import BadRow, CsvFile, Row, read_csv
from campaigns.errors import InvalidAddress, InvalidRecipients
from campaigns.ledger import Import, ImportProgress, NewRecipient
from campaigns.message import CompiledMessage
from campaigns.rejected_file import Rejected, RejectedFile, candidates, written_file

if TYPE_CHECKING:
    from campaigns.client import Client

BATCH = 1000

OnProgress = Callable[[int, float], None]
"""Called after each batch with the lines done and the part of the whole (0 to 1)."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of a list. `added` counts rows, those suppressed included, duplicates not."""

    added: int = 0
    duplicate: int = 0
    rejected: int = 0
    suppressed: int = 0
    rejected_file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `campaigns send --json` prints of it."""
        return {
            "added": self.added,
            "duplicate": self.duplicate,
            "rejected": self.rejected,
            "rejected_file": None if self.rejected_file is None else str(self.rejected_file),
        }


class RecipientList:
    """The recipients of one campaign."""

    def __init__(self, client: Client, campaign_name: str) -> None:
        self._client = client
        self._name = campaign_name

    def __repr__(self) -> str:
        return f"<RecipientList of {self._name}>"

    def add_csv(
        self,
        path: Path | str,
        *,
        rejected_file: Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImportReport:
        """Add everybody in a CSV file with a column `email`; the other columns are merge fields.

        Each batch is one transaction with the import's progress: killed at any point and called again with
        the same file, it goes on where it was, and the report counts everybody once. A file that was added
        before is not added again; its report is returned. Rejected lines are listed in `rejected_file`, which
        is written anew (default: a new file `<campaign>-rejected.csv` in the working directory, with a number
        if that is taken; an import that is taken up again goes on with its own).

        Raises InvalidRecipients if the file is no usable list or is changed meanwhile (its import stays as
        after a kill; another file is a list of its own), TemplateError if a merge field has neither column
        nor default, and TransitionRefused if the campaign takes no more recipients.
        """
        file = read_csv(Path(path))
        record = self._client.ledger.campaign(self._name)
        self._client.compiled(record).check(file.columns)
        state = self._client.ledger.begin_import(record.id, file.digest)
        number = [one.id for one in self._client.ledger.imports(record.id)].index(state.id) + 1
        paths = self._paths(record.id, number)
        if state.finished:
            made = written_file(paths, lambda: _rejected(file)) if state.rejected else None
            return _report(state, rejected_file or made)
        with RejectedFile(paths, given=rejected_file, ours=lambda: _rejected(file)) as rejects:
            state = self._import(record.id, file, state, rejects, on_progress)
        return _report(state, rejects.path)

    def add(
        self, recipients: Iterable[str | Mapping[str, Any]], *, rejected_file: Path | None = None
    ) -> ImportReport:
        """Add addresses, or mappings with `email` among their keys, from any iterable; streamed.

        The rejected are listed with their number, from 1. This cannot be taken up again by itself; but
        whoever is added twice is a duplicate. Raises as `add_csv` does.
        """
        record = self._client.ledger.campaign(self._name)
        fields = _Fields(self._client.compiled(record))
        numbered = enumerate(recipients, 1)
        total = ImportReport()
        with RejectedFile(self._paths(record.id, 1), given=rejected_file) as rejects:
            while batch := list(islice(numbered, BATCH)):
                judged = [_judged(number, *fields.split(number, one)) for number, one in batch]
                rejected = [one for one in judged if isinstance(one, Rejected)]
                added = self._client.ledger.add_recipients(
                    record.id, _good(judged), continues=batch[0][0] > 1
                )
                rejects.write(rejected)
                total = replace(
                    total,
                    added=total.added + added.added,
                    duplicate=total.duplicate + added.duplicate,
                    rejected=total.rejected + len(rejected),
                    suppressed=total.suppressed + added.suppressed,
                )
        return replace(total, rejected_file=rejects.path)

    def _import(
        self,
        campaign_id: int,
        file: CsvFile,
        state: Import,
        rejects: RejectedFile,
        on_progress: OnProgress | None,
    ) -> Import:
        lines = _count_lines(file.path) if on_progress else 0
        for batch in _batches(file.rows(), state.position):
            judged = [_judged_row(row) for row in batch]
            rejected = [one for one in judged if isinstance(one, Rejected)]
            rejects.write(rejected)
            if batch[-1].position <= state.position:
                continue  # done before the interruption: only the list of rejected lines is made again
            state = self._add_batch(campaign_id, state, batch[-1], _good(judged), len(rejected))
            if on_progress:
                on_progress(state.position, min(1.0, state.line / max(lines, 1)))
        return self._finish(campaign_id, state)

    def _add_batch(
        self, campaign_id: int, state: Import, last: Row | BadRow, good: Sequence[NewRecipient], rejected: int
    ) -> Import:
        progress = ImportProgress(
            import_id=state.id,
            from_line=state.line,
            from_position=state.position,
            line=last.line,
            position=last.position,
            rejected=rejected,
        )
        added = self._client.ledger.add_recipients(campaign_id, good, progress)
        return replace(
            state,
            line=last.line,
            position=last.position,
            added=state.added + added.added,
            duplicate=state.duplicate + added.duplicate,
            rejected=state.rejected + rejected,
            suppressed=state.suppressed + added.suppressed,
        )

    def _finish(self, campaign_id: int, state: Import) -> Import:
        progress = ImportProgress(
            import_id=state.id,
            from_line=state.line,
            from_position=state.position,
            line=state.line,
            position=state.position,
            finished=True,
        )
        self._client.ledger.add_recipients(campaign_id, [], progress)
        return replace(state, finished=True)

    def _paths(self, campaign_id: int, number: int) -> Iterator[Path]:
        """Where the rejected lines of the campaign's list of this number may go."""
        yield from candidates(self._client.report_directory, self._name, campaign_id, number)


class _Fields:
    """Takes recipients apart, and holds each new set of fields against the templates."""

    def __init__(self, compiled: CompiledMessage) -> None:
        self._compiled = compiled
        self._checked: set[tuple[str, ...]] = set()

    def split(self, number: int, recipient: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The address as given, and the merge fields. Raises InvalidRecipients, which names the number."""
        if isinstance(recipient, str):
            email, fields = recipient, {}
        elif isinstance(recipient, Mapping):
            fields = {str(key): value for key, value in recipient.items() if str(key).lower() != "email"}
            emails = [value for key, value in recipient.items() if str(key).lower() == "email"]
            email = str(emails[0]) if emails else ""
        else:
            kind = type(recipient).__name__
            raise InvalidRecipients(
                f"recipient {number}: a recipient is an address or a mapping with `email`, not {kind}"
            )
        _check_storable(number, fields)
        self._check(tuple(fields))
        return email, fields

    def _check(self, names: tuple[str, ...]) -> None:
        if names not in self._checked:
            self._compiled.check(names)
            self._checked.add(names)


def _check_storable(number: int, fields: Mapping[str, Any]) -> None:
    """Merge fields are kept as JSON, which has no dates, objects or numbers that are none."""
    if all(type(value) is str for value in fields.values()):
        return
    for name, value in fields.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise InvalidRecipients(
                f"recipient {number}: the field {name!r} cannot be kept: a text, a number, true, false, None,"
                f" or lists and mappings of those, not {type(value).__name__}"
            ) from None


def _report(state: Import, path: Path | None) -> ImportReport:
    return ImportReport(
        added=state.added,
        duplicate=state.duplicate,
        rejected=state.rejected,
        suppressed=state.suppressed,
        rejected_file=path if state.rejected else None,
    )


def _batches(rows: Iterator[Row | BadRow], position: int) -> Iterator[list[Row | BadRow]]:
    """Batches that do not span `position`, where an earlier run of the import ended."""
    while True:
        batch: list[Row | BadRow] = []
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH or row.position == position:
                break
        if not batch:
            return
        yield batch


def _rejected(file: CsvFile) -> Iterator[Rejected]:
    """All of a file that is or will be rejected."""
    for row in file.rows():
        if isinstance(judged := _judged_row(row), Rejected):
            yield judged


def _judged_row(row: Row | BadRow) -> NewRecipient | Rejected:
    if isinstance(row, BadRow):
        return Rejected(line=row.line, email="", reason=row.reason)
    fields = {name: value for name, value in row.values.items() if name != "email"}
    return _judged(row.line, row.email, fields)


def _judged(line: int, email: str, fields: Mapping[str, Any]) -> NewRecipient | Rejected:
    try:
        address = normalise(email)
    except InvalidAddress as error:
        return Rejected(line=line, email=email, reason=error.reason)
    return NewRecipient(
        email=address.email, dedupe_key=address.dedupe_key, domain=address.domain, fields=fields
    )


def _good(judged: Iterable[NewRecipient | Rejected]) -> list[NewRecipient]:
    return [one for one in judged if isinstance(one, NewRecipient)]


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
