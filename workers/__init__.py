"""What runs: the Celery application with its asyncio pool, and the way of one delivery through a worker.

`celery -A workers worker -Q smtp.primary` finds the application here. It is made when it is asked for, so
that a mistake in the configuration is one clear line and not a traceback.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["celery"]

celery: "Celery"


def __getattr__(name: str) -> Any:
    if name == "celery":
        from workers.app import the_app  # noqa: PLC0415 - importing it reads the configuration

        return the_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
