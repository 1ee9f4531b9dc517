"""A step of the machine: a method, how often it is chosen, and when it can be.

Hypothesis's own rules are chosen evenly, and whole runs go by without half of them; most of the histories
would be about operators, and hardly one comes back from a dot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

from hypothesis import strategies as st

Method = TypeVar("Method", bound=Callable[..., None])


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    weight: int
    when: Callable[[Any], object]
    strategies: dict[str, st.SearchStrategy[Any]]
    wants_data: bool

    def run(self, machine: object, data: st.DataObject) -> None:
        values = {name: data.draw(strategy, label=name) for name, strategy in self.strategies.items()}
        if self.wants_data:
            values["data"] = data
        getattr(machine, self.name)(**values)


def step(
    weight: int = 1, when: Callable[[Any], object] = lambda _: True, **strategies: st.SearchStrategy[Any]
) -> Callable[[Method], Method]:
    """Mark a method as a step; what it takes beside `data` is drawn from the strategies."""

    def mark(method: Method) -> Method:
        marked = Step(
            name=method.__name__,
            weight=weight,
            when=when,
            strategies=strategies,
            wants_data="data" in signature(method).parameters,
        )
        method.__dict__["step"] = marked
        return method

    return mark


def steps_of(machine: type) -> list[Step]:
    """All steps of the class, those that are chosen most often first: failures shrink towards them."""
    found = [getattr(getattr(machine, name), "step", None) for name in sorted(dir(machine))]
    return sorted((one for one in found if isinstance(one, Step)), key=lambda one: -one.weight)
