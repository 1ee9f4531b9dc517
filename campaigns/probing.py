"""Tries idle servers without a mail, so that a dead standby is known before it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from campaigns.fleet import Fleet
from campaigns.server import Server
from campaigns.server_check import CHECK_SECONDS, ServerCheck, check_server

__all__ = ["CERTIFICATE_WARNING_SECONDS", "PROBE_EVERY_SECONDS", "Prober"]

log = logging.getLogger(__name__)

PROBE_EVERY_SECONDS = 30.0
"""A server that has carried no mail for so long is tried, by one process of all, and then again."""
PROBE_FAILING_SECONDS = 5.0
"""One that failed is tried again sooner, until its breaker has made up its mind."""
CERTIFICATE_WARNING_SECONDS = 14 * 86_400.0
DAY_SECONDS = 86_400.0

Check = Callable[[Server, float], ServerCheck]


def _check(server: Server, timeout_seconds: float) -> ServerCheck:
    return check_server(server, timeout_seconds=timeout_seconds)


class Prober:
    """One turn is `run_once`. It blocks while servers are tried: give it a thread of its own."""

    def __init__(self, fleet: Fleet, *, check: Check = _check) -> None:
        self._fleet = fleet
        self._settings, self._ledger = fleet.settings, fleet.ledger
        self._check = check

    def __repr__(self) -> str:
        return f"<Prober of {self._fleet!r}>"

    def run_once(self) -> None:
        """Try the idle servers whose time has come. Raises DatabaseUnavailable."""
        for server in self._settings.servers:
            if self._is_to_answer(server) and self._has_turn(server):
                self._probe(server)

    def _is_to_answer(self, server: Server) -> bool:
        """Not a standby that is not started, nor one that a drill has declared dead for all mail."""
        fleet = self._fleet
        return fleet.is_started(server.name) and not fleet.is_declared_dead(server.name, "campaign")

    def _has_turn(self, server: Server) -> bool:
        taken = self._ledger.take_probe_turn(server.name, PROBE_EVERY_SECONDS)
        return taken and not self._ledger.has_carried(server.name, PROBE_EVERY_SECONDS)

    def _probe(self, server: Server) -> None:
        seconds = min(self._settings.delivery.connect_seconds, CHECK_SECONDS)
        found = self._check(server, seconds)
        self._report(server, found)
        is_news = self._ledger.record_probe(
            server.name,
            error=None if found.ok else found.detail,
            latency_seconds=found.latency_seconds,
            certificate_until=found.certificate_until,
        )
        if is_news and found.ok:
            log.warning("an idle server answers again", extra={"server": server.name})
        elif is_news:
            log.warning(
                "an idle server does not answer", extra={"server": server.name, "reason": found.detail}
            )
        self._look_at_certificate(server, found.certificate_until)

    def _report(self, server: Server, found: ServerCheck) -> None:
        """What the operator has closed is tried for the operator's eyes alone."""
        if self._fleet.mode(server.name) == "closed":
            return
        reason = "" if found.ok else f"probe: {found.detail}"
        opened = self._fleet.board.probe_result(server.name, found.ok, reason) is not None
        if not found.ok and not opened and self._fleet.state(server.name) == "closed":
            self._ledger.probe_sooner(server.name, PROBE_FAILING_SECONDS)

    def _look_at_certificate(self, server: Server, until: float | None) -> None:
        if until is None:
            return
        left_seconds = until - self._fleet.now()
        if left_seconds < CERTIFICATE_WARNING_SECONDS:
            ends, days = datetime.fromtimestamp(until, UTC), max(0, round(left_seconds / DAY_SECONDS))
            reason = f"its certificate ends on {ends:%Y-%m-%d}, in {days} day{'' if days == 1 else 's'}"
            self._ledger.warn_of_certificate(server.name, reason, every_seconds=DAY_SECONDS)
