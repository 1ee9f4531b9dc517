"""One text with merge fields: compiled once, checked against the columns, rendered for each recipient."""

import difflib
import keyword
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import TracebackType

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from campaigns.errors import TemplateError
from campaigns.sandbox import BUDGET, GLOBALS, Budget, Environment, OverBudget, bound

__all__ = ["Template", "alias_of", "merge_values"]

_SEVERAL_WORDS = re.compile(r"\{\{-?\s*([^\W\d]\w*(?:[ -]\w+){1,8})\s*(?:\||-?\}\})")
_LONGEST_OUTPUT = 1_000_000
_LONGEST_SOURCE = 2_000_000
_ALWAYS = frozenset(["email", "fields"])
_ENVIRONMENTS = {html: Environment(html=html) for html in (False, True)}


class Template:
    """A subject, an HTML part, a text part or a header, with Jinja expressions in it.

    `html` escapes what is merged in. `variables` are the names that it takes from the recipient: names, and
    columns spelt `fields["Name of the column"]`. Raises TemplateError, naming part and line.
    """

    def __init__(self, source: str, part: str, *, html: bool = False) -> None:
        self.part = part
        self._environment = _ENVIRONMENTS[html]
        try:
            self._compile(source)
        except jinja2.TemplateSyntaxError as error:
            raise self._error(_explained(error, source), error.lineno) from error
        except (ValueError, SyntaxError, RecursionError, OverflowError, MemoryError) as error:
            raise self._error(f"it cannot be compiled ({error})", None) from error

    def _compile(self, source: str) -> None:
        if len(source) > _LONGEST_SOURCE:
            raise OverflowError(f"longer than {_LONGEST_SOURCE:,} characters")
        tree = self._environment.parse(source)
        self.names = frozenset(find_undeclared_variables(tree) - _ALWAYS)
        self.columns = frozenset(_columns(tree))
        code = self._environment.compile(bound(tree, self._environment), filename=f"<{self.part}>")
        self._template = jinja2.Template.from_code(self._environment, code, {})
        self.is_static = all(isinstance(node, nodes.TemplateData) for node in _leaves(tree))

    @property
    def variables(self) -> frozenset[str]:
        return self.names | self.columns

    def missing(self, columns: Iterable[str], defaults: Iterable[str] = ()) -> list[str]:
        """Return the variables for which there is neither a column nor a default, sorted."""
        columns, defaults = tuple(columns), tuple(defaults)
        exact = {*columns, *defaults, *_ALWAYS}
        names = exact | _aliases(tuple(columns)).keys() | _aliases(tuple(defaults)).keys()
        return sorted((self.names - names) | (self.columns - exact))

    def check(self, columns: Iterable[str], defaults: Iterable[str] = ()) -> None:
        """Raise TemplateError for the first missing variable, with what there is instead."""
        columns, defaults = tuple(columns), tuple(defaults)
        for name in self.missing(columns, defaults):
            raise TemplateError(_no_such_column(self.part, name, columns))

    def render(self, values: Mapping[str, object]) -> str:
        """Return the text for what `merge_values` returned. Raises TemplateError."""
        template = self._template
        context = template.new_context(dict(values), shared=True)
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.root_render_func(context):
                length += len(piece)
                if length > _LONGEST_OUTPUT:
                    raise OverBudget(f"it makes more than {_LONGEST_OUTPUT:,} characters")
                pieces.append(piece)
        except Exception as error:
            raise self._error(_said(error), self._line(error.__traceback__)) from error
        return "".join(pieces)

    def _line(self, traceback: TracebackType | None) -> int | None:
        line = None
        while traceback is not None:
            if traceback.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line

    def _error(self, what: str, line: int | None) -> TemplateError:
        place = f", line {line}" if line else ""
        return TemplateError(f"The {self.part} template{place}: {what.rstrip('.')}.")

    def __repr__(self) -> str:
        return f"<Template {self.part} uses {sorted(self.variables)}>"


def _explained(error: jinja2.TemplateSyntaxError, source: str) -> str:
    """What is wrong, and how a column whose name is several words is written, if that seems to be it."""
    message = (error.message or "syntax error").rstrip(".")
    line = "".join(source[:_LONGEST_SOURCE].splitlines()[error.lineno - 1 : error.lineno])
    words = _SEVERAL_WORDS.search(line)
    alias = None if words is None else alias_of(words[1])
    if words is None or alias is None:
        return message
    return f'{message}. A column {words[1]} is written {{{{ {alias} }}}} or {{{{ fields["{words[1]}"] }}}}'


def alias_of(column: str) -> str | None:
    """Return the name under which a template may use a column: `First Name` is also `first_name`."""
    alias = re.sub(r"\W+", "_", column.strip().lower()).strip("_")
    return alias if alias.isidentifier() and not keyword.iskeyword(alias) else None


@lru_cache(maxsize=256)
def _aliases(columns: tuple[str, ...]) -> dict[str, str]:
    """Return alias to column; what two columns would share is nobody's."""
    found: dict[str, list[str]] = {}
    for column in columns:
        alias = alias_of(column)
        if alias is not None and alias not in columns:
            found.setdefault(alias, []).append(column)
    return {alias: names[0] for alias, names in found.items() if len(names) == 1}


def merge_values(
    email: str, fields: Mapping[str, object], defaults: Mapping[str, object]
) -> dict[str, object]:
    """Return all that the templates of one mail can name, and their common budget.

    An empty value is an empty value: a default stands in for a missing field alone.
    """
    columns = {**defaults, **fields, "email": email}
    names = {**_with_aliases(defaults), **_with_aliases(fields)}
    return {**GLOBALS, **names, "email": email, "fields": columns, BUDGET: Budget()}


def _with_aliases(values: Mapping[str, object]) -> dict[str, object]:
    aliases = _aliases(tuple(values))
    return {**{alias: values[column] for alias, column in aliases.items()}, **values}


def _columns(tree: nodes.Template) -> Iterable[str]:
    for node in tree.find_all(nodes.Getitem):
        if _is_fields(node.node) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            yield node.arg.value
    for attribute in tree.find_all(nodes.Getattr):
        if _is_fields(attribute.node) and attribute.attr not in ("get", "items", "keys", "values"):
            yield attribute.attr


def _is_fields(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "fields"


def _leaves(tree: nodes.Template) -> Iterable[nodes.Node]:
    for node in tree.body:
        if isinstance(node, nodes.Output):
            yield from node.nodes
        else:
            yield node


_WITH_DEFAULT = "give the campaign a default (`defaults=` of `Campaign.create`, in Python)"


def _said(error: Exception) -> str:
    if isinstance(error, jinja2.UndefinedError) and (error.message or "").endswith("is undefined"):
        return f"{error.message}: add the column, correct the name, or {_WITH_DEFAULT}"
    if isinstance(error, RecursionError):
        return "a macro calls itself too often"
    return str(error) or type(error).__name__


def _no_such_column(part: str, name: str, columns: tuple[str, ...]) -> str:
    spellings = {**{column: column for column in columns}, **_aliases(columns)}
    close = difflib.get_close_matches(name, spellings, n=1)
    hint = f" Is `{close[0]}` meant?" if close else ""
    there = ", ".join(f"`{column}`" for column in columns)
    return (
        f"The {part} template uses `{name}`, and the list has no such column (columns: {there}).{hint}"
        f" Add the column, correct the template (`{{{{ fields.get({name!r}, 'instead') }}}}` can do without"
        f" it), or {_WITH_DEFAULT}."
    )
