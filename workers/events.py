"""Celery's events of tasks and workers, sent without waiting for a broker that is away."""

from typing import Any

from celery.app.events import Events as _Events
from celery.events import EventDispatcher as _EventDispatcher

__all__ = ["EventDispatcher", "Events"]

# Celery's stubs know nothing of how its own classes are told of each other.
_StockEvents: Any = _Events
_StockDispatcher: Any = _EventDispatcher

ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


class EventDispatcher(_StockDispatcher):  # type: ignore[misc]  # see above
    """Stock, but for this: it tries a lost connection once more, and keeps the event until there is one.

    The stock one tries for ever, in the worker's main thread. A heartbeat that was the first to meet a dead
    broker held that thread until it was back: nothing said that it was away, and nothing stopped the worker.
    """

    def send(self, type: str, *args: Any, retry_policy: Any = None, **fields: Any) -> None:
        super().send(type, *args, retry_policy=retry_policy or ONCE_MORE, **fields)


class Events(_StockEvents):  # type: ignore[misc]  # see above
    dispatcher_cls = "workers.events:EventDispatcher"
