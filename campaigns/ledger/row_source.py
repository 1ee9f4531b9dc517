"""Many rows as the parameters of one statement of constant text.

PostgreSQL takes one array a column (`unnest`), SQLite one JSON text (`json_each`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause, text

__all__ = ["RowSource", "clean", "ids_in", "ids_parameter", "statement"]


class RowSource:
    """A table expression over rows that travel as parameters; `columns` gives name and SQL type."""

    def __init__(self, **columns: str) -> None:
        self.columns = columns

    def sql(self, dialect: str) -> str:
        """The table expression, aliased `w`."""
        if dialect == "postgresql":
            arrays = ", ".join(f"CAST(:w_{name} AS {kind}[])" for name, kind in self.columns.items())
            return f"unnest({arrays}) AS w({', '.join(self.columns)})"
        fields = ", ".join(
            f"json_extract(value, '$[{index}]') AS {name}" for index, name in enumerate(self.columns)
        )
        return f"(SELECT {fields} FROM json_each(:w_rows)) AS w"  # noqa: S608 - constant names

    def parameters(self, dialect: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The parameters of `sql` for these rows, each a sequence in the order of the columns."""
        if dialect == "postgresql":
            columns = zip(*rows, strict=True) if rows else ((),) * len(self.columns)
            return {f"w_{name}": list(values) for name, values in zip(self.columns, columns, strict=True)}
        return {"w_rows": json.dumps(rows, allow_nan=False)}


def ids_in(dialect: str) -> str:
    """The right side of a comparison with the ids in parameter `ids`: `id {ids_in}`."""
    if dialect == "postgresql":
        return "= ANY(CAST(:ids AS bigint[]))"
    return "IN (SELECT value FROM json_each(:ids))"


def ids_parameter(dialect: str, ids: Sequence[int]) -> Any:
    return list(ids) if dialect == "postgresql" else json.dumps(list(ids))


def clean(value: str | None) -> str | None:
    """Without what a database refuses in text: NUL and lone surrogates. The last resort."""
    if value is None:
        return None
    return value.replace("\0", "").encode("utf-8", "replace").decode()


_statements: dict[str, TextClause] = {}


def statement(sql: str) -> TextClause:
    """The one TextClause of this text, so that SQLAlchemy's and psycopg's caches find it again."""
    found = _statements.get(sql)
    if found is None:
        found = _statements[sql] = text(sql)
    return found
