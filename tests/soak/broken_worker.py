"""A worker without one of its guards, to see that a soak notices.

    python -m tests.soak.broken_worker DEFECT -A workers worker -Q smtp.primary ...

A defect is a function of `tests.stateful.defects`, such as the_sweep_sends_what_is_committing_again.
"""

from __future__ import annotations

import sys

import pytest


def main(defect: str, *arguments: str) -> None:
    from celery.__main__ import main as celery  # noqa: PLC0415

    from tests.stateful import defects  # noqa: PLC0415 - they are planted before anything runs

    getattr(defects, defect)(pytest.MonkeyPatch())
    sys.argv = ["celery", *arguments]
    celery()


if __name__ == "__main__":
    main(*sys.argv[1:])
