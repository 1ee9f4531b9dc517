"""Text of strangers, made harmless for terminals and spreadsheets."""

from __future__ import annotations

__all__ = ["printable", "spreadsheet_cell"]

# A spreadsheet runs a cell that begins with one of these.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """One line, with what a terminal would obey (escapes, controls, changes of direction) replaced."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def spreadsheet_cell(value: object) -> object:
    """What may be written to a CSV file: no cell is run as a formula, no control character is left."""
    if not isinstance(value, str):
        return value
    return printable("'" + value if value.startswith(_FORMULA) else value)
