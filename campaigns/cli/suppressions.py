"""`campaigns suppress`: addresses that get nothing, whatever the campaign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from campaigns.cli.output import counted, iso, json_option, note, print_json, print_table, short_time
from campaigns.client import Client
from campaigns.errors import InvalidAddress
from campaigns.settings import load_settings

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group()
def suppress() -> None:
    """Addresses that get nothing, whatever the campaign.

    \b
    campaigns suppress add ann@example.com --reason "asked to be left alone"
    campaigns suppress import unsubscribed.csv
    campaigns suppress list
    campaigns suppress remove ann@example.com
    """


@suppress.command()
@click.argument("address", nargs=-1, required=True)
@click.option("--reason", help="For whoever reads the list later.")
@json_option
@click.pass_context
def add(context: click.Context, address: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Suppress one or more addresses, from now on. Mail that waits for them already is not sent.

    One that is no address is told, and keeps no other off the list.
    """
    with Client(load_settings()) as client:
        results = [_tried(client.suppressions.add, one, reason) for one in address]
        added, known = results.count(True), results.count(False)
        rejected = len(results) - added - known
        if as_json:
            print_json({"added": added, "known": known, "rejected": rejected})
        else:
            known_text = f", {known:,} known before" if known else ""
            rejected_text = f", {rejected:,} rejected" if rejected else ""
            click.echo(f"{counted(added, 'address', 'addresses')} suppressed{known_text}{rejected_text}.")
        if rejected:
            context.exit(1)


@suppress.command(name="import")
@click.argument("file", type=_FILE, metavar="CSV")
@click.option("--reason", help="For those that have none in a column called reason.")
@json_option
def import_(file: Path, reason: str | None, as_json: bool) -> None:
    """Suppress every address in a CSV file with a column called email."""
    with Client(load_settings()) as client:
        report = client.suppressions.add_csv(file, reason)
        if as_json:
            print_json({"added": report.added, "known": report.known, "rejected": report.rejected})
            return
        click.echo(
            f"{counted(report.added, 'address', 'addresses')} suppressed,"
            f" {report.known:,} known before, {report.rejected:,} rejected."
        )
        for line, reason_text in report.examples:
            note(f"line {line}: {reason_text}")


@suppress.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """Show all suppressed addresses."""
    with Client(load_settings()) as client:
        every = list(client.suppressions)
        if as_json:
            print_json(
                [
                    {"email": one.email, "reason": one.reason, "created_at": iso(one.created_at)}
                    for one in every
                ]
            )
        else:
            rows = [(one.email, short_time(one.created_at), one.reason) for one in every]
            print_table(("email", "since", "reason"), rows, empty="Nobody is suppressed.")


@suppress.command()
@click.argument("address", nargs=-1, required=True)
@json_option
@click.pass_context
def remove(context: click.Context, address: tuple[str, ...], as_json: bool) -> None:
    """Take addresses off the list. Campaigns that passed them over do not come back to them."""
    with Client(load_settings()) as client:
        results = [_tried(client.suppressions.remove, one) for one in address]
        removed = results.count(True)
        if as_json:
            print_json({"removed": removed, "missing": len(results) - removed})
        elif removed:
            click.echo(f"{counted(removed, 'address', 'addresses')} taken off the list.")
        for one, result in zip(address, results, strict=True):
            if result is False:
                note(f"error: {one} is not on the list")
        if removed < len(results):
            context.exit(1)


def _tried(change: Callable[..., bool], *arguments: str | None) -> bool | None:
    """What became of one address; None, and told, if it is none."""
    try:
        return change(*arguments)
    except InvalidAddress as error:
        note(f"error: {error}")
        return None
