"""What `campaigns servers` tells of a server: health, share, what the operator decided, probes and limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from campaigns.allowance import UsedLimit
from campaigns.breaker import BreakerState
from campaigns.health import ServerHealth
from campaigns.ledger import Ledger, ModeRecord, ProbeRecord, StandbyRecord
from campaigns.routing import shares, usable
from campaigns.settings import DEFAULT_STREAM, Server, Settings

__all__ = ["UNKNOWN", "ServerFacts", "ServerStatus", "server_statuses", "with_last_fault"]

UNKNOWN = "unknown"
"""The state of every server while nobody can ask the health board."""
_LATEST_EVENTS = 20
_MODE_TEXTS = {"drained": "drained by hand", "closed": "closed by hand"}
_STANDBY_TEXTS = {"resting": "not started", "starting": "being started", "stopping": "being stopped"}
_STATE_TEXTS = {str(BreakerState.HALF_OPEN): "on trial", str(BreakerState.OPEN): "resting"}


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What is known of all servers at one moment, by their names. `readers`: whom a live worker serves."""

    health: Mapping[str, ServerHealth] = field(default_factory=dict)
    readers: Collection[str] = ()
    modes: Mapping[str, ModeRecord] = field(default_factory=dict)
    standbys: Mapping[str, StandbyRecord] = field(default_factory=dict)
    probes: Mapping[str, ProbeRecord] = field(default_factory=dict)
    outdated_probes: Collection[str] = ()
    used: Mapping[str, Sequence[UsedLimit]] = field(default_factory=dict)
    exhausted: Collection[str] = ()
    overdue_drills: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """One server now. `share` is the part (0 to 1) of the default stream's new mail that it is given.

    `state`, `since` and `reason` are the breaker's; `returned` is the part of its usual share that it has
    back. While the broker does not answer the state is "unknown", the reason and `broker_trouble` say so, and
    `share` is None; of a health board that is apart (`state`) `broker_trouble` says nothing.
    `standby` is None for a server that need not be started. `is_probe_outdated`: mail was tried, or its
    breaker changed, since the last probe.
    """

    name: str
    state: str
    share: float | None
    weight: int
    configured_weight: int | None = None
    rate: str | None = None
    since: float | None = None
    reason: str | None = None
    has_worker: bool = False
    is_full: bool = False
    returned: float = 1.0
    last_fault: str | None = None
    mode: ModeRecord | None = None
    standby: StandbyRecord | None = None
    probe: ProbeRecord | None = None
    is_probe_outdated: bool = False
    used: tuple[UsedLimit, ...] = ()
    overdue_drill: str | None = None
    broker_trouble: str = ""

    @property
    def state_text(self) -> str:
        """How it stands in words for people: JSON keeps the breaker's state."""
        if self._is_off:
            return _MODE_TEXTS[self._mode]
        if self.standby is not None and self.standby.state != "active":
            return _STANDBY_TEXTS[self.standby.state]
        if self.state != BreakerState.CLOSED:
            return _STATE_TEXTS.get(self.state, self.state)
        if self.is_full:
            return "full"
        return "working" if self.returned >= 1 else f"back at {100 * self.returned:.0f} %"

    @property
    def is_amiss(self) -> bool:
        """Whether it is known not to do its usual work; a standby that is not started does."""
        return self.state_text not in {"working", UNKNOWN, _STANDBY_TEXTS["resting"]}

    @property
    def since_shown(self) -> float | None:
        """Since when it has stood so."""
        return self._shown[0]

    @property
    def reason_text(self) -> str:
        """The reason, for people."""
        return self._shown[1]

    @property
    def share_text(self) -> str:
        """Its share, in percent."""
        return "?" if self.share is None else f"{100 * self.share:.0f} %"

    @property
    def weight_text(self) -> str:
        """Its weight, and the configured one where the operator gave it another."""
        if self.configured_weight in {None, self.weight}:
            return str(self.weight)
        return f"{self.weight} (configured {self.configured_weight})"

    def to_dict(self) -> dict[str, Any]:
        """The object that `campaigns servers --json` prints; times in ISO 8601, UTC."""
        return {
            "name": self.name,
            "state": self.state,
            "share": None if self.share is None else round(self.share, 4),
            "weight": self.weight,
            "since": _iso(self.since),
            "reason": self.reason,
            "worker": self.has_worker,
            "limit": self.rate,
            "mode": self._mode,
            "mode_since": _iso(self.mode.changed_at) if self.mode else None,
            "mode_reason": self.mode.reason if self.mode else None,
            "configured_weight": self.weight if self.configured_weight is None else self.configured_weight,
            "returned": self.returned,
            "full": self.is_full,
            "standby": _standby_dict(self.standby),
            "limits": [{"limit": one.limit, "used": one.used, "of": one.of} for one in self.used],
            "probe": _probe_dict(self.probe, is_outdated=self.is_probe_outdated),
            "overdue_drill": self.overdue_drill,
        }

    @property
    def _mode(self) -> str:
        return self.mode.mode if self.mode else "open"

    @property
    def _is_off(self) -> bool:
        return self._mode != "open"

    @property
    def _has_failed_probe(self) -> bool:
        """Whether that is the latest that is known of it."""
        probe = self.probe
        return probe is not None and probe.error is not None and not self.is_probe_outdated

    @property
    def _shown(self) -> tuple[float | None, str]:
        if self._is_off and self.mode is not None:
            return self.mode.changed_at, self.mode.reason or ""
        if self.standby is not None and self.standby.state != "active":
            return self.standby.changed_at or None, self.standby.reason or ""
        if self.state_text == "full":
            spent = ", ".join(f"{one.limit} is used up" for one in self.used if one.used >= one.of)
            return None, spent or "by its own word"
        if self.state_text == "working" and self._has_failed_probe and self.probe is not None:
            return self.probe.probed_at, "its last probe failed"
        return self.since, self._breaker_reason

    @property
    def _breaker_reason(self) -> str:
        """On trial, the breaker knows no more than that its rest is over."""
        if self.state != BreakerState.HALF_OPEN:
            return self.reason or ""
        cause = f"last fault: {self.last_fault}" if self.last_fault else self.reason
        return "being tried with single mails" + (f"; {cause}" if cause else "")


def server_statuses(
    settings: Settings, facts: ServerFacts, now: float, *, trouble: str = ""
) -> list[ServerStatus]:
    """All configured servers in their order. Pure.

    `trouble`: what keeps the health board from being known, if anything does: then each server says so.
    """
    given = _given(settings, facts, now)
    statuses = [_status(settings, server, facts, given.get(server.name, 0.0)) for server in settings.servers]
    if not trouble:
        return statuses
    is_apart = settings.state is not None
    return [_not_known(status, trouble, is_apart=is_apart) for status in statuses]


def _not_known(status: ServerStatus, trouble: str, *, is_apart: bool) -> ServerStatus:
    """What the database says still holds: a server that is off for the operator has no share."""
    is_off = status.state_text in {*_MODE_TEXTS.values(), *_STANDBY_TEXTS.values()}
    share = 0.0 if is_off else None
    reason = f"not known now: {'the Redis that `state` names' if is_apart else 'the broker'} {trouble}"
    broker_trouble = "" if is_apart else trouble
    return replace(
        status, state=UNKNOWN, share=share, since=None, reason=reason, broker_trouble=broker_trouble
    )


def with_last_fault(status: ServerStatus, ledger: Ledger) -> ServerStatus:
    """The breaker forgets, while half-open, why it opened; the events know."""
    if status.state != BreakerState.HALF_OPEN:
        return status
    events = ledger.events(status.name, None, _LATEST_EVENTS)
    faults = [
        event.reason for event in events if event.kind == "breaker" and event.to_state == BreakerState.OPEN
    ]
    return replace(status, last_fault=faults[-1] if faults else None)


def _given(settings: Settings, facts: ServerFacts, now: float) -> dict[str, float]:
    """The servers that take new mail of the default stream now, and the part of it that each gets."""
    route = settings.route(DEFAULT_STREAM)
    weights = {server.name: float(_weight(settings, server, facts)) for server in route}
    off = {server.name for server in route if server.name in facts.exhausted or not _may_take(server, facts)}
    able = usable(route, health=facts.health, readers=facts.readers, now=now, weights=weights, off=off)
    if not able:
        return {}
    return shares(
        {name: weights[name] for name in able}, {name: one.share for name, one in facts.health.items()}
    )


def _may_take(server: Server, facts: ServerFacts) -> bool:
    mode, standby = facts.modes.get(server.name), _standby(server, facts)
    return (mode is None or mode.mode == "open") and (standby is None or standby.state == "active")


def _standby(server: Server, facts: ServerFacts) -> StandbyRecord | None:
    """How a server stands that must be started first; one that never was rests."""
    if not server.on_activate:
        return None
    resting = StandbyRecord(
        server=server.name, state="resting", owner=None, until=None, failures=0, reason=None, changed_at=0.0
    )
    return facts.standbys.get(server.name, resting)


def _weight(settings: Settings, server: Server, facts: ServerFacts) -> int:
    mode = facts.modes.get(server.name)
    if mode is not None and mode.weight is not None:
        return mode.weight
    return settings.weight(server.name, DEFAULT_STREAM)


def _status(settings: Settings, server: Server, facts: ServerFacts, share: float) -> ServerStatus:
    health = facts.health.get(server.name)
    return ServerStatus(
        name=server.name,
        state="closed" if health is None else str(health.state),
        share=share,
        weight=_weight(settings, server, facts),
        configured_weight=settings.weight(server.name, DEFAULT_STREAM),
        rate=str(server.rate) if server.rate else None,
        since=health.since or None if health else None,
        reason=health.reason or None if health else None,
        has_worker=server.name in facts.readers,
        is_full=server.name in facts.exhausted or (health is not None and health.is_full),
        returned=1.0 if health is None else health.share,
        mode=facts.modes.get(server.name),
        standby=_standby(server, facts),
        probe=facts.probes.get(server.name),
        is_probe_outdated=server.name in facts.outdated_probes,
        used=tuple(facts.used.get(server.name, ())),
        overdue_drill=facts.overdue_drills.get(server.name),
    )


def _standby_dict(standby: StandbyRecord | None) -> dict[str, Any] | None:
    if standby is None:
        return None
    return {"state": standby.state, "since": _iso(standby.changed_at or None), "reason": standby.reason}


def _probe_dict(probe: ProbeRecord | None, *, is_outdated: bool) -> dict[str, Any] | None:
    if probe is None or probe.probed_at is None:
        return None
    return {
        "ok": probe.error is None,
        "at": _iso(probe.probed_at),
        "succeeded_at": _iso(probe.succeeded_at),
        "latency_seconds": probe.latency_seconds,
        "certificate_until": _iso(probe.certificate_until),
        "error": probe.error,
        "outdated": is_outdated,
    }


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
