"""`campaigns servers` and `campaigns events`: what carries the mail, changing it, and what happened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from campaigns.cli.output import as_dicts, json_option, note, print_json, print_table, short_time
from campaigns.client import Client
from campaigns.probing import CERTIFICATE_WARNING_SECONDS
from campaigns.server_status import ServerStatus
from campaigns.settings import load_settings

_MOST_WEIGHT = 1_000_000
_WEIGHT_FORM = (
    f"a weight is a whole number from 0 to {_MOST_WEIGHT}: 0 for mail only while no other server can take it;"
    " `campaigns servers close` for none at all"
)

_reason_option = click.option("--reason", help="For whoever reads the events later.")


class _Weight(click.IntRange):
    """A weight as Settings accept it, whose error says what to do instead."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r}: {_WEIGHT_FORM}", param, ctx)


class _WeightCommand(click.Command):
    """A number below 0 looks like an option, and none of ours is a digit."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if re.fullmatch(r"-[\d.]", error.option_name):
                raise click.BadParameter(_WEIGHT_FORM, ctx, param_hint="'N'") from None
            raise


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def servers(context: click.Context, as_json: bool) -> None:
    """Each mail server: health, share of the load, limits, the last change and its reason.

    Or change one, live in the whole cluster, until it is changed again:

    \b
    campaigns servers drain primary       gives it no more; what waits still goes out through it
    campaigns servers close primary       takes its mail away, too: it moves to the others at once
    campaigns servers open primary        lets it take mail again
    campaigns servers weight primary 20   gives it another share of the load
    """
    if context.invoked_subcommand is not None:
        return
    with Client(load_settings()) as client:
        every = client.servers()
        if as_json:
            print_json([_to_dict(one) for one in every])
            return
        _print_servers(every)
        _note_what_is_amiss(every, client.closed_streams(), client.ledger.now())


@servers.command(name="open")
@click.argument("name")
@_reason_option
@json_option
def open_(name: str, reason: str | None, as_json: bool) -> None:
    """Let a server take mail again that was drained or closed, or that said that it is full.

    Mail that waits already until the time that the server gave goes on waiting; all other mail does not.
    """
    with Client(load_settings()) as client:
        changed = client.set_server_mode(name, "open", reason=reason)
        text = "is open: it takes mail again" if changed else "is open already"
        _report(client, name, f"{name} {text}.", as_json)


@servers.command()
@click.argument("name")
@_reason_option
@json_option
def drain(name: str, reason: str | None, as_json: bool) -> None:
    """Give a server no more mail. What waits for it still goes out through it.

    \b
    campaigns servers drain primary --reason "kernel update at 14:00"
    """
    with Client(load_settings()) as client:
        changed = client.set_server_mode(name, "drained", reason=reason)
        text = "is given no more mail; what waits still goes out" if changed else "is drained already"
        _report(client, name, f"{name} {text}.", as_json)


@servers.command()
@click.argument("name")
@_reason_option
@json_option
def close(name: str, reason: str | None, as_json: bool) -> None:
    """Take a server out at once: what waits for it moves to the others. What it is given now is finished."""
    with Client(load_settings()) as client:
        changed = client.set_server_mode(name, "closed", reason=reason)
        text = "takes no mail; what waits for it moves to the others" if changed else "is closed already"
        _report(client, name, f"{name} {text}.", as_json)


@servers.command(cls=_WeightCommand)
@click.argument("name")
@click.argument("number", metavar="N", type=_Weight(0, _MOST_WEIGHT), required=False)
@click.option("--default", "by_default", is_flag=True, help="The configured weight again.")
@_reason_option
@json_option
def weight(name: str, number: int | None, by_default: bool, reason: str | None, as_json: bool) -> None:
    """Give a server another weight in every stream. 0: it takes mail only while no other one can.

    \b
    campaigns servers weight primary 20
    campaigns servers weight primary --default
    """
    if (number is None) != by_default:
        raise click.UsageError("give a weight, or --default for the configured one")
    with Client(load_settings()) as client:
        changed = client.set_server_weight(name, number, reason=reason)
        now = "" if changed else " already"
        what = "its configured weight" if by_default else f"the weight {number}"
        _report(client, name, f"{name} has {what}{now}.", as_json)


def _report(client: Client, name: str, text: str, as_json: bool) -> None:
    (status,) = [one for one in client.servers() if one.name == name]
    if as_json:
        print_json(_to_dict(status))
    else:
        click.echo(text)
    _note_closed_streams(client.closed_streams())


def _to_dict(server: ServerStatus) -> dict[str, Any]:
    """`state` is the breaker's word (a closed one lets mail through), `told` the word of the table."""
    return {**server.to_dict(), "told": server.state_text}


def _print_servers(every: Sequence[ServerStatus]) -> None:
    columns = ("server", "state", "share>", "weight>", "worker", "since", "reason")
    rows = [
        (
            server.name,
            server.state_text,
            server.share_text,
            server.weight_text,
            "yes" if server.has_worker else "no",
            short_time(server.since_shown),
            server.reason_text,
        )
        for server in every
    ]
    print_table(columns, rows, empty="")
    if any(server.used or server.rate or _was_probed(server) for server in every):
        click.echo()
        _print_probes_and_limits(every)


def _print_probes_and_limits(every: Sequence[ServerStatus]) -> None:
    columns = ("server", "used of limits", "last probe", "took>", "certificate until")
    rows = [(server.name, _limits_text(server), *_probe_cells(server)) for server in every]
    print_table(columns, rows, empty="")


def _probe_cells(server: ServerStatus) -> tuple[str, str, str]:
    """What it found is told while it is the latest that is known of the server."""
    probe = server.probe
    if probe is None or probe.probed_at is None:
        return "", "", ""
    at = short_time(probe.probed_at)
    ends = "" if probe.certificate_until is None else _day(probe.certificate_until)
    if server.is_probe_outdated:
        return f"{at}, before its latest mail or change", "", ends
    if probe.error is not None:
        return f"{at} failed: {probe.error}", "", ends
    took = "" if probe.latency_seconds is None else f"{1000 * probe.latency_seconds:,.0f} ms"
    return f"{at} ok", took, ends


def _limits_text(server: ServerStatus) -> str:
    used = [one.told for one in server.used]
    return ", ".join(([f"at most {server.rate}"] if server.rate else []) + used)


def _was_probed(server: ServerStatus) -> bool:
    return server.probe is not None and server.probe.probed_at is not None


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d}"


def _note_what_is_amiss(every: Sequence[ServerStatus], closed_streams: Sequence[str], now: float) -> None:
    _note_closed_streams(closed_streams)
    for server in every:
        until = server.probe.certificate_until if server.probe else None
        if until is not None and until - now < CERTIFICATE_WARNING_SECONDS:
            note(f"note: the certificate of {server.name} ends on {_day(until)}.")
        if server.overdue_drill:
            note(f"note: {server.name}: {server.overdue_drill}.")


def _note_closed_streams(streams: Sequence[str]) -> None:
    if streams:
        note(f"note: no server of {', '.join(streams)} is open: its mail waits until one is.")


@click.command()
@click.option("--server", help="What concerns this server alone.")
@click.option("--campaign", help="What concerns this campaign alone.")
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="The last ones."
)
@json_option
def events(server: str | None, campaign: str | None, limit: int, as_json: bool) -> None:
    """What changed, when and why; the newest last.

    \b
    campaigns events --server primary
    campaigns events --campaign spring
    """
    with Client(load_settings()) as client:
        if server is not None:
            client.settings.server(server)
        if campaign is not None:
            client.campaign(campaign)
        every = client.events(server=server, campaign=campaign, limit=limit)
        if as_json:
            print_json(as_dicts(every))
            return
        rows = [
            (
                short_time(event.at),
                event.server or event.campaign,
                event.kind,
                f"{event.from_state or ''} > {event.to_state or ''}".strip(" >") if event.to_state else "",
                event.reason,
            )
            for event in every
        ]
        print_table(("at", "of", "what", "change", "reason"), rows, empty="Nothing happened yet.")
