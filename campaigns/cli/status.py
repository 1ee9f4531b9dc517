"""`campaigns status` and `campaigns watch`."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from typing import TextIO

import click

from campaigns.cli.interruption import INTERRUPTED
from campaigns.cli.output import as_dicts, json_option, note, print_json, print_table, seconds_text
from campaigns.client import Client
from campaigns.errors import CampaignsError
from campaigns.progress import Progress
from campaigns.settings import load_settings
from campaigns.states import State, Status
from campaigns.watch import View

_NOT_SENT = (State.SUPPRESSED, State.CANCELLED)
"""In one column, so that a row adds up in 80 columns."""
_TO_LOOK_AT = {
    State.UNCERTAIN: "a server may have taken them, its reply never came",
    State.FAILED: "refused for good, or given up",
}


@click.command()
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """How far a campaign has come; without NAME, all of them.

    \b
    campaigns status
    campaigns status spring --json
    """
    with Client(load_settings()) as client:
        if name is None:
            every = [campaign.status() for campaign in client.campaigns()]
            print_json(as_dicts(every)) if as_json else _print_all(every)
        else:
            view = client.campaign(name).view()
            print_json(view.progress.to_dict()) if as_json else _print_one(view)


@click.command()
@click.argument("name")
@json_option
@click.pass_context
def watch(context: click.Context, name: str, as_json: bool) -> None:
    """Follow a campaign until it is finished or cancelled: progress, rate, servers.

    Ctrl-C ends the watching, not the campaign. With --json the last status is printed at the end.
    """
    with Client(load_settings()) as client:
        progress = watch_campaign(client, name, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print_json(progress.to_dict())


def watch_campaign(client: Client, name: str, *, file: TextIO) -> Progress:
    """Watches; Ctrl-C says that the campaign goes on, and exits."""
    campaign = client.campaign(name)
    try:
        return campaign.watch(file=file)
    except KeyboardInterrupt:
        stands = "goes on"
        with suppress(CampaignsError):  # a database that is away is no reason not to end
            status = campaign.status().status
            stands = stands if status is Status.RUNNING else f"is {status}"
        note(f"\nNot watching any more; {name} {stands}. Again: `campaigns watch {shlex.quote(name)}`.")
        click.get_current_context().exit(INTERRUPTED)


def _print_all(every: list[Progress]) -> None:
    rows = [
        (
            progress.name,
            str(progress.status),
            f"{progress.total:,}",
            f"{progress.counts.get(State.SENT, 0):,}",
            f"{progress.counts.get(State.FAILED, 0):,}",
            f"{progress.counts.get(State.UNCERTAIN, 0):,}",
            f"{sum(progress.counts.get(state, 0) for state in _NOT_SENT):,}",
            f"{progress.alive:,}",
        )
        for progress in every
    ]
    columns = ("campaign", "status", "total>", "sent>", "failed>", "uncertain>", "not sent>", "to go>")
    print_table(columns, rows, empty="No campaign yet: see `campaigns send --help`.")


def _print_one(view: View) -> None:
    progress = view.progress
    reason = f" ({progress.reason})" if progress.reason else ""
    click.echo(f"{progress.name} is {progress.status}{reason}: {progress.done:,} of {progress.total:,} done")
    if view.note:
        click.echo(view.note)
    if view.has_pace:
        eta = progress.eta_seconds
        left = "no estimate yet" if eta is None else f"{seconds_text(eta)} to go"
        click.echo(f"{progress.rate_per_second:,.1f} mails/s, {left}")
    if progress.waiting_text:
        click.echo(f"{progress.waiting_text}, the first in {seconds_text(progress.waiting.first_seconds)}")
    click.echo()
    counts = [(str(state), f"{progress.counts.get(state, 0):,}") for state in State]
    print_table(("state", "recipients>"), counts, empty="")
    click.echo()
    servers = [(name, f"{one.sent:,}", f"{one.rerouted:,}") for name, one in progress.servers.items()]
    print_table(("server", "sent>", "rerouted>"), servers, empty="")
    _note_where_to_look(progress)


def _note_where_to_look(progress: Progress) -> None:
    for state, what in _TO_LOOK_AT.items():
        if count := progress.counts.get(state, 0):
            command = f"campaigns recipients {shlex.quote(progress.name)} --state {state}"
            note(f"note: {count:,} {state}: {what}; `{command}` lists them.")
