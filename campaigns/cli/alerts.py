"""`campaigns alerts`: whom the workers tell of what happens, and whether it arrives."""

from __future__ import annotations

import click

from campaigns.alert_channels import Trial, channel_statuses, try_email, try_webhook
from campaigns.cli.output import as_dicts, json_option, note, print_json, print_table
from campaigns.client import Client
from campaigns.settings import load_settings

_NOBODY = "Nobody is told of anything: name a webhook or an email under [alerts] in campaigns.toml."


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def alerts(context: click.Context, as_json: bool) -> None:
    """Whom the workers tell when a server fails or returns, and whether that gets through.

    \b
    campaigns alerts
    campaigns alerts test
    """
    if context.invoked_subcommand is not None:
        return
    with Client(load_settings()) as client:
        statuses = channel_statuses(client.settings.alerts, client.ledger)
        if as_json:
            print_json(as_dicts(statuses))
            return
        rows = [(status.channel, status.to, status.text) for status in statuses]
        print_table(("by", "to", "how it stands"), rows, empty=_NOBODY)


@alerts.command()
@click.option(
    "--seconds", type=click.FloatRange(0, 3600), default=20.0, show_default=True, help="For the mail."
)
@json_option
@click.pass_context
def test(context: click.Context, seconds: float, as_json: bool) -> None:
    """Send a message that says it is a test, by webhook and by e-mail as far as they are configured.

    The e-mail goes the way of all mail, so a worker must be running. The exit status is 0 if all arrived.
    """
    with Client(load_settings()) as client:
        trials = _trials(client, seconds)
    if as_json:
        print_json(as_dicts(trials))
    else:
        rows = [("ok" if trial.ok else "FAILED", trial.channel, trial.detail) for trial in trials]
        print_table(("", "by", "what came of it"), rows, empty=_NOBODY)
    if not trials or not all(trial.ok for trial in trials):
        context.exit(1)


def _trials(client: Client, seconds: float) -> list[Trial]:
    policy, ledger = client.settings.alerts, client.ledger
    trials = []
    if policy.webhook is not None:
        trials.append(try_webhook(policy, ledger.now()))
    if policy.email is not None:
        if len(client.servers_without_worker()) == len(client.settings.servers):
            note("No worker is running: start `campaigns up`, or the mail waits.")
        trials.append(try_email(policy, ledger, wait_seconds=seconds))
    return trials
