"""When a failover was last rehearsed, and whether it is time again."""

from __future__ import annotations

from collections.abc import Mapping

from campaigns.ledger import DrillRecord, Ledger
from campaigns.settings import DEFAULT_STREAM, Settings

__all__ = ["overdue_drills", "remind_of_drills"]

REMIND_SECONDS = 86_400.0
GIVE_UP_SECONDS = 300.0
"""A drill that has not ended so long after its server's return never will: its process is gone."""


def overdue_drills(settings: Settings, last: Mapping[str, DrillRecord], now: float) -> dict[str, str]:
    """Why a drill of a server is overdue, by server; empty unless `drill_every` is set. Pure.

    `last` is the newest finished drill of each. Only servers that carry mail all the time and that another
    one can stand in for are concerned; one that failed is overdue at once.
    """
    every_seconds = settings.drill_every_seconds
    if every_seconds is None or len(settings.servers) < 2:
        return {}
    told = {
        server: _overdue_text(last.get(server), now, every_seconds) for server in _drilled_servers(settings)
    }
    return {server: text for server, text in told.items() if text}


def remind_of_drills(settings: Settings, ledger: Ledger) -> None:
    """Record an event a day for each overdue drill, and the failure of those that were broken off."""
    ledger.give_up_drills(GIVE_UP_SECONDS)
    if settings.drill_every_seconds is None:
        return
    for server, reason in overdue_drills(settings, ledger.last_drills(), ledger.now()).items():
        ledger.remind_of_drill(server, reason, REMIND_SECONDS)


def _drilled_servers(settings: Settings) -> list[str]:
    streams = [DEFAULT_STREAM, *settings.streams]
    return [
        server.name
        for server in settings.servers
        if any(
            settings.weight(server.name, stream) > 0
            for stream in streams
            if server in settings.route(stream) and len(settings.route(stream)) > 1
        )
    ]


def _overdue_text(last: DrillRecord | None, now: float, every_seconds: float) -> str:
    if last is None:
        return "its failover was never rehearsed; run `campaigns drill`"
    if last.status == "failed":
        return f"its last drill failed: {last.reason or 'see campaigns drills'}"
    age_seconds = now - (last.finished_at or last.started_at)
    if age_seconds <= every_seconds:
        return ""
    return (
        f"its last drill was {_days(age_seconds)} ago, and one is due every {_days(every_seconds)};"
        " run `campaigns drill`"
    )


def _days(seconds: float) -> str:
    unit, name = (
        (86_400, "day") if seconds >= 86_400 else (3600, "hour") if seconds >= 3600 else (60, "minute")
    )
    number = round(seconds / unit)
    return f"{number} {name}{'' if number == 1 else 's'}"
