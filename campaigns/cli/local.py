"""`campaigns up` and `campaigns demo`: everything on this machine."""

from __future__ import annotations

import click

from campaigns.cli.output import json_option


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Worker processes per server.",
)
@click.option("--flower", is_flag=True, help="Start Flower too, and print its address.")
def up(processes: int, flower: bool) -> None:
    """Start all that sends: database, broker (if embedded), workers for each server, the control worker.

    Runs until Ctrl-C, which ends it gracefully; started again, it goes on where it was.

    \b
    campaigns up
    campaigns up --processes 2 --flower
    """
    from campaigns.local.up import run_up  # noqa: PLC0415 - loads celery
    from campaigns.settings import load_settings  # noqa: PLC0415

    run_up(load_settings(), processes=processes, flower=flower)


@click.command()
@click.option(
    "--recipients", type=click.IntRange(1, 1_000_000), default=2000, show_default=True, help="How many mails."
)
@click.option("--keep", is_flag=True, help="Leave it running with Flower, and print the address.")
@json_option
@click.pass_context
def demo(context: click.Context, recipients: int, keep: bool, as_json: bool) -> None:
    """Send a campaign over two local servers, kill the primary in the middle, and count.

    Nothing to set up, and no mail leaves this machine. The exit status is 0 only if nobody was lost and
    nobody was served twice.
    """
    from campaigns.demo.run import run_demo  # noqa: PLC0415 - loads celery

    context.exit(run_demo(recipients, as_json, keep) or 0)
