"""Adding recipients to a campaign: streamed, in batches, taken up again where a kill interrupted it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from campaigns.address import normalise
from campaigns.csv_file import BadRow, CsvFile, Row, read_csv
from campaigns.errors import InvalidAddress, InvalidRecipients
from campaigns.ledger import Import, ImportProgress, NewRecipient
from campaigns.message import CompiledMessage

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


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A line that cannot be served: where, the address as it was given, and why."""

    line: int
    email: str = field(repr=False)
    reason: str


class RejectedFile:
    """Lists rejected lines with their reasons; made when the first one comes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = ExitStack()
        self._stream: TextIO | None = None

    def __enter__(self) -> RejectedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def write(self, rejected: Iterable[Rejected]) -> None:
        for one in rejected:
            csv.writer(self._open()).writerow([one.line, one.email, one.reason])

    def _open(self) -> TextIO:
        if self._stream is None:
            try:
                file = self.path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
            except OSError as error:
                raise InvalidRecipients(f"{self.path} cannot be written: {error.strerror}") from error
            self._stream = self._files.enter_context(file)
            csv.writer(self._stream).writerow(["line", "email", "reason"])
        return self._stream


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
        before is not added again; its report is returned. Rejected lines are listed in `rejected_file`
        (default: `<campaign>-rejected.csv` in the working directory).

        Raises InvalidRecipients if the file is no usable list, TemplateError if a merge field has neither
        column nor default, and TransitionRefused if the campaign takes no more recipients.
        """
        file = read_csv(Path(path))
        record = self._client.ledger.campaign(self._name)
        self._client.compiled(record).check(file.columns)
        state = self._client.ledger.begin_import(record.id, file.digest)
        number = [one.id for one in self._client.ledger.imports(record.id)].index(state.id) + 1
        target = rejected_file or self._rejected_path(number)
        if not state.finished:
            state = self._import(record.id, file, state, target, on_progress)
        return _report(state, target)

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
        target = rejected_file or self._free_path()
        with RejectedFile(target) as rejects:
            while batch := list(islice(numbered, BATCH)):
                judged = [_judged(number, *fields.split(one)) for number, one in batch]
                rejected = [one for one in judged if isinstance(one, Rejected)]
                added = self._client.ledger.add_recipients(record.id, _good(judged))
                rejects.write(rejected)
                total = replace(
                    total,
                    added=total.added + added.added,
                    duplicate=total.duplicate + added.duplicate,
                    rejected=total.rejected + len(rejected),
                    suppressed=total.suppressed + added.suppressed,
                )
        return replace(total, rejected_file=target if total.rejected else None)

    def _import(
        self, campaign_id: int, file: CsvFile, state: Import, target: Path, on_progress: OnProgress | None
    ) -> Import:
        lines = _count_lines(file.path) if on_progress else 0
        with RejectedFile(target) as rejects:
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

    def _rejected_path(self, number: int) -> Path:
        """The first list of a campaign has the plain name, further ones a number."""
        slug = re.sub(r"[^\w.-]+", "-", self._name).strip("-.") or "campaign"
        suffix = "" if number == 1 else f"-{number}"
        return self._client.report_directory / f"{slug}-rejected{suffix}.csv"

    def _free_path(self) -> Path:
        number = 1
        while self._rejected_path(number).exists():
            number += 1
        return self._rejected_path(number)


class _Fields:
    """Takes recipients apart, and holds each new set of fields against the templates."""

    def __init__(self, compiled: CompiledMessage) -> None:
        self._compiled = compiled
        self._checked: set[tuple[str, ...]] = set()

    def split(self, recipient: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The address as given, and the merge fields."""
        if isinstance(recipient, str):
            email, fields = recipient, {}
        elif isinstance(recipient, Mapping):
            fields = {str(key): value for key, value in recipient.items() if str(key).lower() != "email"}
            emails = [value for key, value in recipient.items() if str(key).lower() == "email"]
            email = str(emails[0]) if emails else ""
        else:
            kind = type(recipient).__name__
            raise InvalidRecipients(f"a recipient is an address or a mapping with `email`, not {kind}")
        self._check(tuple(fields))
        return email, fields

    def _check(self, names: tuple[str, ...]) -> None:
        if names not in self._checked:
            self._compiled.check(names)
            self._checked.add(names)


def _report(state: Import, target: Path) -> ImportReport:
    return ImportReport(
        added=state.added,
        duplicate=state.duplicate,
        rejected=state.rejected,
        suppressed=state.suppressed,
        rejected_file=target if state.rejected else None,
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
