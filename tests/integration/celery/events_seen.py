"""What a monitor sees: a real event receiver on the broker, in a thread."""

import threading
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from celery.events.state import State


class EventsSeen:
    """Collects events, and keeps Celery's own picture of the tasks (what Flower shows)."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self.state = State()
        self._connection = app.connection_for_read()
        self._ready, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._receive, args=(app,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def of(self, identity: str) -> list[dict[str, Any]]:
        return [event for event in tuple(self.events) if event.get("uuid") == identity]

    def kinds(self, identity: str) -> list[str]:
        return [event["type"] for event in self.of(identity)]

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10)
        self._connection.release()

    def _take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.state.event(event)

    def _receive(self, app: Celery) -> None:
        receiver = EventReceiver(self._connection, handlers={"*": self._take}, app=app)
        with receiver.consumer_context() as (connection, _channel, _consumers):
            self._ready.set()
            while not self._stopped.is_set():
                try:
                    connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue
