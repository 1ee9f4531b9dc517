"""How long each phase of the SMTP dialogue may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Deadlines"]


class _Delivery(Protocol):
    @property
    def connect_seconds(self) -> float: ...
    @property
    def command_seconds(self) -> float: ...
    @property
    def body_seconds(self) -> float: ...
    @property
    def dot_seconds(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Deadlines by phase, in seconds.

    Before the dot they may be shorter than RFC 5321 4.5.3.2 asks, for there a second try is safe. At the dot
    they should be its full 10 minutes: who gives up earlier makes uncertain mails out of slow ones.
    """

    connect_seconds: float = 15.0
    command_seconds: float = 60.0
    body_seconds: float = 120.0
    dot_seconds: float = 600.0

    @classmethod
    def from_delivery(cls, delivery: _Delivery) -> Deadlines:
        """The deadlines that `Settings.delivery` sets."""
        return cls(
            connect_seconds=delivery.connect_seconds,
            command_seconds=delivery.command_seconds,
            body_seconds=delivery.body_seconds,
            dot_seconds=delivery.dot_seconds,
        )
