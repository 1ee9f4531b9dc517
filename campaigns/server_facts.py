"""Gathers what is known of the servers, for `campaigns servers`."""

from __future__ import annotations

from collections.abc import Collection

from campaigns.allowance import Allowance
from campaigns.drill_calendar import overdue_drills
from campaigns.health import HealthBoard
from campaigns.ledger import Ledger
from campaigns.server_status import ServerFacts
from campaigns.settings import Settings

__all__ = ["server_facts"]


def server_facts(
    settings: Settings,
    ledger: Ledger,
    board: HealthBoard,
    allowance: Allowance,
    *,
    readers: Collection[str],
) -> ServerFacts:
    """Everything at one moment, as near as can be; `readers` is whom a live worker serves.

    Raises DatabaseUnavailable.
    """
    names = [server.name for server in settings.servers]
    probes, standbys = ledger.probes(), ledger.standbys()
    resting = {
        server.name
        for server in settings.servers
        if server.on_activate and (server.name not in standbys or standbys[server.name].state != "active")
    }
    allowance.refresh()
    return ServerFacts(
        health=board.snapshot(),
        readers=readers,
        modes=ledger.modes(),
        standbys=standbys,
        probes=probes,
        outdated_probes=[name for name in probes.keys() - resting if ledger.is_probe_outdated(name)],
        used={name: allowance.used(name) for name in names},
        exhausted=[name for name in names if allowance.is_exhausted(name) is not None],
        overdue_drills=overdue_drills(settings, ledger.last_drills(), ledger.now()),
    )
