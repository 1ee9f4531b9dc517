"""Where templates run: no access to anything but the merge fields, and bounded work and size.

Jinja's sandbox keeps a template away from Python's internals, but not from `{{ 'a' * 10**9 }}` or from ten
nested loops. Here every loop round, call, filter and produced character is paid from a budget that each
rendering gets anew: an amount of work and no clock, so that a template behaves alike on every machine.
The payments are compiled into the template (`bound`).
"""

# ruff: noqa: N802 - Jinja names the methods of a visitor after its classes of nodes

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import GeneratorType
from typing import Any, cast

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from campaigns.sandbox_filters import FILTERS

__all__ = ["BUDGET", "GLOBALS", "Budget", "Environment", "OverBudget", "bound"]

_WORK = 2_000_000
_STEP = 20
_LONGEST_VALUE = 200_000
_LARGEST_BITS = 1024
# Not a name that a template can spell.
BUDGET = "the budget"
GLOBALS: Mapping[str, object] = {"range": safe_range, "namespace": Namespace}

_STRING_METHODS = frozenset(
    name
    for name in dir(str)
    if name.startswith("is")
    or name.endswith(("strip", "split", "partition", "find", "index", "with", "case", "lines"))
    or name in ("capitalize", "count", "lower", "removeprefix", "removesuffix", "title", "upper")
)
_LOOP = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "cycle", "previtem", "nextitem")
)
_MAPPING = frozenset(["get", "items", "keys", "values"])
_SEQUENCE = frozenset(["count", "index"])
_REFUSED = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from ... import",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class OverBudget(Exception):  # noqa: N818 - it says what happened
    """The template does more work, or makes more text, than one mail can need."""


class Budget:
    """What one rendering may still spend."""

    __slots__ = ("remaining",)

    def __init__(self) -> None:
        self.remaining = _WORK

    def spend(self, work: int) -> None:
        self.remaining -= work
        if self.remaining < 0:
            raise OverBudget("it runs too long or makes too much text: shorten its loops")

    def spend_on(self, value: object) -> None:
        self.spend(_weight(value))

    def __repr__(self) -> str:
        return f"<Budget {self.remaining} of {_WORK}>"


def _weight(value: object) -> int:
    """Size of a value in characters and elements, nested ones included; stops counting at the limit."""
    if isinstance(value, str | range):
        return len(value)
    if not isinstance(value, list | tuple | Mapping):
        return 1
    total, waiting = 0, [value]
    while waiting and total <= _LONGEST_VALUE:
        one: Any = waiting.pop()
        if isinstance(one, list | tuple):
            waiting.extend(one)
        elif isinstance(one, Mapping):
            waiting.extend([*one.keys(), *one.values()])
        elif isinstance(one, Undefined):
            str(one)  # raises what it has to say
        elif isinstance(one, Namespace):
            raise TypeError("a namespace cannot be put into a list")
        total += len(one) if isinstance(one, str) else 1
    return total


def _budget(context: Any) -> Budget:
    found = context.parent[BUDGET]
    assert isinstance(found, Budget)
    return found


@pass_context
def _printable(context: Any, value: object) -> object:
    """Jinja's `finalize`: pay for each `{{ ... }}`. A missing value (JSON's null) prints as nothing."""
    if isinstance(value, str):
        _budget(context).spend(len(value))
        return value
    if value is None:
        return ""
    if isinstance(value, int | float | Undefined):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be printed: take one element, or use the filter join")


@pass_context
def _each(context: Any, value: Any, body: int) -> Iterator[Any]:
    budget = _budget(context)
    for item in value:
        budget.spend(_STEP + body)
        yield item


@pass_context
def _paid(context: Any, value: object) -> object:
    _budget(context).spend_on(value)
    return value


@pass_context
def _joined(context: Any, value: object) -> object:
    """An operand of `~`, which prints it."""
    return _printable(context, value)


@pass_context
def _held(context: Any, value: object) -> object:
    """A list, tuple or mapping being made: its elements are plain values, and not too many of them."""
    weight = _weight(value)
    _budget(context).spend(weight)
    if weight > _LONGEST_VALUE:
        raise OverBudget("it makes too long a list")
    return value


@pass_context
def _written(context: Any, length: int) -> str:
    _budget(context).spend(_STEP + length)
    return ""


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Make the filter pay for what it reads and for what it makes."""
    lead = {
        "context": lambda context: (context,),
        "eval_context": lambda context: (context.eval_ctx,),
        "environment": lambda context: (context.environment,),
    }.get(getattr(getattr(function, "jinja_pass_arg", None), "name", ""), lambda _: ())

    @pass_context
    def bounded(context: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Namespace):
                raise TypeError(f"a namespace cannot be given to the filter {name}")
            weight = _weight(value)
            if weight > _LONGEST_VALUE:
                raise OverBudget(f"too long a value for the filter {name}")
            budget.spend(_STEP + weight)
        result = function(*lead(context), *args, **kwargs)
        if isinstance(result, GeneratorType):
            result = list(islice(result, _LONGEST_VALUE))
        budget.spend_on(result)
        return result

    return bounded


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with short lists of what is allowed, and paid for."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=StrictUndefined,
            finalize=_printable,
            # Folding constants would run filters at compile time, outside any budget.
            optimized=False,
            cache_size=0,
        )
        self.globals = dict(GLOBALS)
        self.filters = {name: _bounded(function, name) for name, function in FILTERS.items()}
        self.filters.update(
            {" each": _each, " paid": _paid, " joined": _joined, " held": _held, " written": _written}
        )

    def wrap_str_format(self, value: Any) -> None:
        """Return None always: `str.format` is not among the methods that are allowed."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        message = f"`{attribute}` is not available on a {type(obj).__name__}: use a filter"
        return self.undefined(message, name=attribute, obj=obj, exc=SecurityError)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        for kind, allowed in (
            (str, _STRING_METHODS),
            (LoopContext, _LOOP),
            (Mapping, _MAPPING),
            (list | tuple, _SEQUENCE),
        ):
            if isinstance(obj, kind):
                return attr in allowed
        return False

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(function, LoopContext | Undefined) or not callable(function):
            return super().call(context, function, *args, **kwargs)
        budget = _budget(context)
        budget.spend(_STEP + _weight(getattr(function, "__self__", None)))
        budget.spend_on([*args, *kwargs.values()])
        result = super().call(context, function, *args, **kwargs)
        if not isinstance(function, Macro):
            budget.spend_on(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return self.binop_table[operator](left, right)
        return _OPERATIONS[operator](_budget(context), left, right)


def _add(budget: Budget, left: Any, right: Any) -> Any:
    budget.spend(_weight(left) + _weight(right))
    return _small(left + right)


def _multiply(budget: Budget, left: Any, right: Any) -> Any:
    if not isinstance(left, int | float):
        left, right = right, left
    if not isinstance(right, int | float):
        budget.spend(max(int(left), 0) * _weight(right))
    return _small(left * right)


def _power(_budget: Budget, left: Any, right: Any) -> Any:
    if not all(isinstance(number, float) or abs(number) <= _LARGEST_BITS for number in (left, right)):
        raise OverBudget("too large a power")
    return _small(left**right)


def _modulo(_budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, str):
        raise TypeError("`%` on a text: use the filter format")
    return left % right


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise OverBudget("too large a number")
    return value


_OPERATIONS: dict[str, Callable[[Budget, Any, Any], Any]] = {
    "+": _add,
    "*": _multiply,
    "**": _power,
    "%": _modulo,
}


def bound(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """Compile the payments into a parsed template. Raises TemplateSyntaxError for what is not allowed."""
    for node in tree.find_all(tuple(_REFUSED)):
        tag = next(tag for kind, tag in _REFUSED.items() if isinstance(node, kind))
        raise TemplateSyntaxError(f"`{tag}` is not available: a template is one text", node.lineno)
    _Payments().visit(tree)
    tree.set_environment(environment)
    return tree


class _Payments(NodeTransformer):
    """Wraps each expression whose cost depends on values into a filter that pays for it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not available", node.lineno)
        body = nodes.Const(_static_length(node.body))
        self.generic_visit(node)
        node.iter = _filtered(node.iter, " each", body)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._paying_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._paying_body(node)

    def _paying_body(self, node: Any) -> nodes.Node:
        length = nodes.Const(_static_length(node.body), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered(length, " written"), lineno=node.lineno))
        return cast(nodes.Node, node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(part, " joined") for part in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, " paid")
        return node

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, " paid")
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        node.node = _filtered(node.node, " paid")
        node.args = [_filtered(argument, " paid") for argument in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, " paid")
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, " held") if node.ctx == "load" else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _filtered(self.generic_visit(node), " held")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _filtered(self.generic_visit(node), " held")


def _filtered(value: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, value), name, list(args), [], None, None, lineno=value.lineno)


def _static_length(body: list[nodes.Node]) -> int:
    return sum(len(text.data) for node in body for text in _texts(node))


def _texts(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)
