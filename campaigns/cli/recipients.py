"""`campaigns recipients`: who is in a campaign, and what became of them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable

import click

from campaigns.campaign import Delivery
from campaigns.cli.output import iso, print_table, short_time
from campaigns.client import Client
from campaigns.printable import spreadsheet_cell
from campaigns.settings import load_settings
from campaigns.states import State

COLUMNS = ("email", "state", "server", "reply", "deferrals", "updated_at", "message_id")
_TABLE_ROWS = 1000


@click.command()
@click.argument("name")
@click.option(
    "--state", type=click.Choice([str(state) for state in State]), help="Those in this state alone."
)
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def recipients(name: str, state: str | None, form: str, as_json: bool) -> None:
    """List the recipients of a campaign with their state, server and the last reply.

    \b
    campaigns recipients spring --state failed
    campaigns recipients spring --state uncertain     # with the Message-ID to look for in the server's log
    campaigns recipients spring --format csv > spring.csv
    """
    with Client(load_settings()) as client:
        deliveries = client.campaign(name).deliveries(state=state)
        if as_json or form == "json":
            _print_json(deliveries)
        elif form == "csv":
            _print_csv(deliveries)
        else:
            _print_table(deliveries, with_ids=state == State.UNCERTAIN)


def _print_json(deliveries: Iterable[Delivery]) -> None:
    """One list, written as it is read: a million recipients need no memory."""
    separator = "[\n"
    for delivery in deliveries:
        click.echo(separator + json.dumps(_row(delivery)), nl=False)
        separator = ",\n"
    click.echo("[]" if separator == "[\n" else "\n]")


def _print_csv(deliveries: Iterable[Delivery]) -> None:
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for delivery in deliveries:
        writer.writerow({key: spreadsheet_cell(value) for key, value in _row(delivery).items()})


def _print_table(deliveries: Iterable[Delivery], *, with_ids: bool) -> None:
    """In pages of a thousand, each with its header, so that it begins at once."""
    rows: list[tuple[object, ...]] = []
    empty = "Nobody."
    header = ("email", "state", "server", "deferrals>", "updated", *(["message-id"] * with_ids), "reply")
    for delivery in deliveries:
        one, ids = delivery, [delivery.message_id] * with_ids
        updated = short_time(one.updated_at)
        rows.append((one.email, one.state, one.server, one.deferrals, updated, *ids, one.reply))
        if len(rows) == _TABLE_ROWS:
            print_table(header, rows, empty="")
            rows, empty = [], ""
    if rows or empty:
        print_table(header, rows, empty=empty)


def _row(delivery: Delivery) -> dict[str, object]:
    return {
        "email": delivery.email,
        "state": str(delivery.state),
        "server": delivery.server,
        "reply": delivery.reply,
        "deferrals": delivery.deferrals,
        "updated_at": iso(delivery.updated_at),
        "message_id": delivery.message_id,
    }
