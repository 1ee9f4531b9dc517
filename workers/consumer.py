"""Celery's consumer, with what only a consumer can be told: transport, reconnecting, pace of events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as _Consumer
from celery.worker.state import maybe_shutdown

from campaigns.bulk_transport import lost_connection

__all__ = ["Consumer"]

log = logging.getLogger(__name__)

# Celery's stubs know only half of its consumer.
_StockConsumer: Any = _Consumer

RECONNECT_SECONDS = 3.0
"""The longest pause between two attempts to reach the broker again."""

EVENTS_SECONDS = 0.2
EVENTS_AT_ONCE = 200
_REMIND_SECONDS = 30.0


class Consumer(_StockConsumer):  # type: ignore[misc]  # see above
    """Stock, but for this: consumes in bulk from Redis; asks no neighbours at the start (mingle, gossip: we
    use neither their clocks nor their revokes); tries every few seconds to reach a broker that is away,
    however long; sends task events in batches; drops a message that cannot be a task, whatever is wrong.
    """

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        self._events_scheduled = False
        # Two lines a mail would be most of the log, and no small part of the work.
        get_logger("celery.worker.strategy").setLevel(logging.WARNING)
        get_logger("celery.app.trace").setLevel(logging.WARNING)
        super().__init__(*args, worker_options=options, **kwargs)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        connection = self.app.connection_for_read(heartbeat=heartbeat)
        if self.app.conf.get("campaigns_bulk_transport"):
            # By its name: `inspect stats`, which Flower asks for, sends it as JSON.
            connection.transport_cls = "campaigns.bulk_transport:Transport"
        return self.ensure_connected(connection)

    def ensure_connected(self, conn: Any) -> Any:
        """Unlike the stock one, whose pauses grow to half a minute."""
        reached = conn.ensure_connection(
            _reminder(conn), None, interval_start=0.5, interval_step=0.5, interval_max=RECONNECT_SECONDS,
            callback=maybe_shutdown,
        )  # fmt: skip
        self.first_connection_attempt = False
        return reached

    def on_send_event_buffered(self) -> None:
        """Each flush costs a round trip: a few of them a second, not one at each turn of the hub."""
        if self.hub and not self._events_scheduled:
            self._events_scheduled = True
            self.event_dispatcher.buffer_limit = EVENTS_AT_ONCE
            self.hub.call_later(EVENTS_SECONDS, self._send_events)

    def _send_events(self) -> None:
        self._events_scheduled = False
        self._flush_events()

    def shutdown(self) -> None:
        self._flush_events()
        super().shutdown()

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            try:
                return handle(message)
            except lost_connection(self.connection_errors):
                raise
            except Exception as error:
                log.error(
                    "a message that cannot be a task was dropped: %s", type(error).__name__,
                    extra={"queue": message.delivery_info.get("routing_key")},
                )  # fmt: skip
                message.reject_log_error(log, self.connection_errors)

        return on_task_received


def _reminder(conn: Any) -> Callable[[Exception, float], None]:
    """Says at once, and then twice a minute, that the broker is away."""
    said_at = 0.0

    def on_error(error: Exception, _pause_seconds: float) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > _REMIND_SECONDS:
            said_at = time.monotonic()
            log.error("the broker at %s cannot be reached, waiting for it: %s", conn.as_uri(), error)

    return on_error
