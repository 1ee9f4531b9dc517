"""`campaigns pause`, `resume`, `cancel` and `retry`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from campaigns.campaign import clock_time
from campaigns.cli.absence import say_who_is_missing
from campaigns.cli.output import counted, json_option, note, print_json
from campaigns.client import Client
from campaigns.settings import load_settings


@click.command()
@click.argument("name")
@json_option
def pause(name: str, as_json: bool) -> None:
    """Stop a campaign for now: nothing more of it is sent, not even what is queued or under way.

    A mail of which a server has had the last byte cannot be taken back. Pausing twice is no error.
    """
    with Client(load_settings()) as client:
        client.campaign(name).pause()
        _report(
            client, name, f"{name} is paused. Go on with `campaigns resume {shlex.quote(name)}`.", as_json
        )


@click.command()
@click.argument("name")
@json_option
def resume(name: str, as_json: bool) -> None:
    """Go on with a paused campaign."""
    with Client(load_settings()) as client:
        told = client.campaign(name).resume()
        _report(client, name, f"{name} goes on.", as_json)
        say_who_is_missing(client, told=told)


@click.command()
@click.argument("name")
@json_option
def cancel(name: str, as_json: bool) -> None:
    """End a campaign for good. Who was not served yet is `cancelled`. There is no way back."""
    with Client(load_settings()) as client:
        client.campaign(name).cancel()
        _report(client, name, f"{name} is cancelled.", as_json)


@click.command()
@click.argument("name")
@click.option(
    "--state",
    type=click.Choice(["failed", "uncertain"]),
    default="failed",
    show_default=True,
    help="Whom to try again.",
)
@json_option
def retry(name: str, state: str, as_json: bool) -> None:
    """Try those again that failed, or those of whom it is not known whether they were served.

    Whoever is uncertain may have got the mail already: trying again may send a second one.

    \b
    campaigns retry spring
    campaigns recipients spring --state uncertain
    campaigns retry spring --state uncertain
    """
    with Client(load_settings()) as client:
        retried = client.campaign(name).retry(state)
        if state == "uncertain" and retried.count:
            note(f"note: {counted(retried.count, 'of them', 'of them')} may get a second mail.")
        if retried.too_young:
            people = counted(retried.too_young, "person was", "people were")
            when = clock_time(retried.ready_in_seconds)
            note(f"note: {people} left alone: the server may still answer. Try again from {when}.")
        extra = {"retried": retried.count, "too_young": retried.too_young}
        _report(
            client,
            name,
            f"{counted(retried.count, 'recipient')} of {name} to be tried again.",
            as_json,
            extra,
        )
        if retried.count:
            say_who_is_missing(client, told=retried.told)


def _report(client: Client, name: str, text: str, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    if as_json:
        print_json({**client.campaign(name).status().to_dict(), **(extra or {})})
    else:
        click.echo(text)
