"""`campaigns servers` and `campaigns events`: what carries the mail, and what happened to it."""

from __future__ import annotations

import click

from campaigns.cli.output import as_dicts, json_option, print_json, print_table, short_time
from campaigns.client import Client
from campaigns.settings import load_settings


@click.command()
@json_option
def servers(as_json: bool) -> None:
    """Each mail server: health, share of the load, limit, the last change and its reason."""
    with Client(load_settings()) as client:
        every = client.servers()
        if as_json:
            print_json(as_dicts(every))
            return
        rows = [
            (
                server.name,
                server.state_text,
                f"{100 * server.share:.0f} %",
                server.weight,
                server.rate or "-",
                "yes" if server.has_worker else "no",
                short_time(server.since),
                server.reason_text,
            )
            for server in every
        ]
        columns = ("server", "state", "share>", "weight>", "limit>", "worker", "since", "reason")
        print_table(columns, rows, empty="")


@click.command()
@click.option("--server", help="What concerns this server alone.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The last ones.")
@json_option
def events(server: str | None, limit: int, as_json: bool) -> None:
    """What changed, when and why; the newest last.

    \b
    campaigns events --server primary
    """
    with Client(load_settings()) as client:
        if server is not None:
            client.settings.server(server)
        every = client.events(server=server, limit=limit)
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
