"""How busy a process is, and so how much more it could send: told to the others with each heartbeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["LoadMeter"]

LEAST_USE = 0.02
"""Below this, what was sent says nothing of what could be."""
REMEMBERED = 0.5
"""How much of the earlier estimate stays in a better new one; a worse one counts at once."""


@dataclass
class Use:
    sent: int = 0
    looks: int = 0
    busy: float = 0.0
    """Sum of the parts of its connections that were busy, one for each look."""


@dataclass(kw_only=True)
class LoadMeter:
    """Counts what is sent, by server, and looks now and then how many connections are busy.

    A process is limited by its connections or by its processor, whichever is used more: what it sends,
    divided by that, is its capacity.
    """

    monotonic: Callable[[], float] = time.monotonic
    cpu_seconds: Callable[[], float] = time.process_time
    _uses: dict[str, Use] = field(default_factory=dict)
    _capacities: dict[str, float] = field(default_factory=dict)
    _since: float = 0.0
    _cpu_since: float = 0.0

    def __post_init__(self) -> None:
        self._since, self._cpu_since = self.monotonic(), self.cpu_seconds()

    def sent(self, server: str) -> None:
        self._uses.setdefault(server, Use()).sent += 1

    def look(self, server: str, busy: int, size: int) -> None:
        """`busy` of `size` connections are at work now."""
        use = self._uses.setdefault(server, Use())
        use.looks += 1
        use.busy += min(1.0, busy / size)

    def beat(self) -> Mapping[str, tuple[float, float | None]]:
        """Since the last call, by server: mails per second, and how many they could be (None: not known)."""
        seconds = max(self.monotonic() - self._since, 1e-3)
        cpu = (self.cpu_seconds() - self._cpu_since) / seconds
        self._since, self._cpu_since = self.monotonic(), self.cpu_seconds()
        uses, self._uses = self._uses, {}
        total = sum(use.sent for use in uses.values())
        return {
            name: self._load(name, use, seconds, cpu * use.sent / total if total else 0.0)
            for name, use in uses.items()
        }

    def _load(self, name: str, use: Use, seconds: float, cpu: float) -> tuple[float, float | None]:
        rate = use.sent / seconds
        used = min(1.0, max(cpu, use.busy / use.looks if use.looks else 0.0))
        if used >= LEAST_USE:
            seen = rate / used
            before = self._capacities.get(name, seen)
            self._capacities[name] = min(seen, REMEMBERED * before + (1 - REMEMBERED) * seen)
        return rate, self._capacities.get(name)
