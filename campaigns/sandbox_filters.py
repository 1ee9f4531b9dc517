"""The filters that templates may use: Jinja's own, less those that a template could make huge with.

Left out: `random` (each attempt of a delivery must send the same mail), `attr`, `pprint`, `xmlattr`, and
what mails do not need and would have to be bounded (`batch`, `slice`, `center`, `indent`, `wordwrap`, ...).
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import pass_eval_context
from jinja2.filters import FILTERS as JINJA_FILTERS

__all__ = ["FILTERS"]

_LONGEST_RESULT = 200_000
# A width of up to 9999 has at most four digits; a named field can put anything between `%` and them.
_WIDTH = re.compile(r"\d{5,}|%[-+ #0.\d]*\*")
_WIDEST = 10_000
_DIGITS = 15

_HARMLESS = (
    *("abs", "capitalize", "count", "d", "default", "e", "escape", "filesizeformat", "first", "float"),
    *("forceescape", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject"),
    *("reverse", "safe", "select", "sort", "string", "striptags", "title", "tojson", "trim", "truncate"),
    *("unique", "upper", "urlencode", "wordcount"),
)


def _limited(characters: int) -> None:
    if characters > _LONGEST_RESULT:
        raise OverflowError("a text grows too long")


@pass_eval_context
def _replace(eval_context: Any, value: str, old: str, new: str, count: int | None = None) -> Any:
    text = str(value)
    _limited(len(text) + text.count(str(old)) * len(str(new)))
    return JINJA_FILTERS["replace"](eval_context, value, old, new, count)


@pass_eval_context
def _join(eval_context: Any, value: Iterable[Any], d: str = "") -> Any:
    parts = list(value)
    _limited(sum(len(str(part)) + len(d) for part in parts))
    return JINJA_FILTERS["join"](eval_context, parts, d)


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    if _WIDTH.search(value):
        raise OverflowError("a width in the filter format is too large")
    inserted = _WIDEST + sum(len(str(part)) for part in (*args, *kwargs.values()))
    _limited(len(value) + value.count("%") * inserted)
    return str(JINJA_FILTERS["format"](value, *args, **kwargs))


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _DIGITS:
        raise OverflowError(f"round takes at most {_DIGITS} digits")
    return float(JINJA_FILTERS["round"](value, precision, method))


FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJA_FILTERS[name] for name in _HARMLESS},
    "format": _format,
    "join": _join,
    "replace": _replace,
    "round": _round,
}
