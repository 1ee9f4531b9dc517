"""How many examples a property is tried with: few and always the same ones, or many and new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["EXAMPLES_VARIABLE", "IS_LONG", "fuzzed"]

EXAMPLES_VARIABLE = "CAMPAIGNS_TEST_EXAMPLES"
_USUAL = 100
_asked = int(os.environ.get(EXAMPLES_VARIABLE) or 0)
IS_LONG = _asked > 0


def fuzzed(examples: int = _USUAL) -> Callable[[Any], Any]:
    """Settings for a property that is tried `examples` times in a usual run.

    With CAMPAIGNS_TEST_EXAMPLES=N it is tried N times per hundred of those, each run with new examples.
    """
    return settings(
        max_examples=max(examples * _asked // _USUAL, 1) if IS_LONG else examples,
        derandomize=not IS_LONG,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,  # each example has a name or a file of its own
            HealthCheck.too_slow,  # the machine may be busy
        ],
    )
