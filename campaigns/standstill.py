"""Why nothing of a campaign moves, in words for the operator: the same for `status` and `watch`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from campaigns.server_status import ServerStatus

__all__ = ["NO_WORKER", "may_carry", "why_nothing_moves"]

NO_WORKER = "no worker is running: start `campaigns up`"
_TAKE_NOTHING = frozenset(
    {"closed by hand", "full", "resting", "not started", "being started", "being stopped"}
)
_ON_TRIAL = "on trial"


def why_nothing_moves(servers: Sequence[ServerStatus]) -> str:
    """What keeps all `servers` of a running campaign from taking new mail; empty if one of them may.

    Without the broker none is given any: what a worker holds already may go out meanwhile.
    One that is on trial takes single mails alone, as many as prove it, and so counts among them.
    """
    if not any(server.has_worker for server in servers):
        return NO_WORKER
    takers = [server for server in servers if _takes_new(server)]
    if takers:
        return _without_broker(takers)
    told = ", ".join(f"{server.name} {_cause(server)}" for server in servers)
    remedy = ""
    if any(server.mode is not None and server.mode.mode != "open" for server in servers):
        remedy = "; `campaigns servers open NAME` opens one"
    on_trial = any(server.state_text == _ON_TRIAL for server in servers)
    most = "more than single mails" if on_trial else "mail"
    return f"no server takes {most} now: {told}{remedy}"


def may_carry(server: ServerStatus) -> bool:
    """Whether mail may still go out through it; a drained one sends what waits there already."""
    return server.has_worker and server.state_text not in _TAKE_NOTHING


def _takes_new(server: ServerStatus) -> bool:
    is_free = server.state_text != _ON_TRIAL and may_carry(server)
    return is_free and (server.mode is None or server.mode.mode == "open")


def _without_broker(takers: Sequence[ServerStatus]) -> str:
    trouble = takers[0].broker_trouble
    return f"the broker {trouble}: what is queued waits for it" if trouble else ""


def _cause(server: ServerStatus) -> str:
    if not server.has_worker and server.state_text not in _TAKE_NOTHING:
        return "has no worker"
    reason = f" ({server.reason_text})" if server.reason_text else ""
    return f"is {server.state_text}{reason}"
