"""`campaigns drill` and `campaigns drills`: a failover is rehearsed, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from campaigns.cli.output import iso, json_option, note, print_json, print_table, short_time
from campaigns.client import Client
from campaigns.errors import DrillRefused
from campaigns.ledger import DrillRecord
from campaigns.settings import load_settings

_NO_SEEDS = (
    "a drill writes to addresses of your own; give a file of them with --recipients seeds.csv:"
    " `email` in its first line, and an address in each other one"
)
_NO_SENDER = "from whom shall the drill's mail be? Give an address that your servers may send for with --from"


@click.command()
@click.option("--server", help="Which one counts as dead; left out: the first one configured.")
@click.option(
    "--recipients",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="Seed addresses, your own people's; one column is called email.",
)
@click.option("--from", "sender", metavar="ADDR", help="Left out: that of alerts, or of the last campaign.")
@click.option("--live", "is_live", is_flag=True, help="For all mail, not the drill's alone.")
@click.option("--yes", is_flag=True, help="Do not ask whether a live drill is meant.")
@click.option(
    "--seconds",
    type=click.FloatRange(3, 600),
    metavar="N",
    default=20.0,
    show_default=True,
    help="How long the server counts as dead.",
)
@json_option
@click.pass_context
def drill(  # noqa: PLR0913, PLR0917 - the options of the command
    context: click.Context,
    server: str | None,
    recipients: Path | None,
    sender: str | None,
    is_live: bool,
    yes: bool,
    seconds: float,
    as_json: bool,
) -> None:
    """Rehearse a failover: a server counts as dead for a while, and seed addresses get a mail.

    Only the drill's own mail is concerned, unless it is live. Measured are the times until the dead server
    was noticed, until another one took over, and until it carried mail again; and what was lost or sent
    twice. The exit status is 0 if the drill was passed, otherwise 1. Ctrl-C ends it and restores everything.

    \b
    campaigns drill --recipients seeds.csv
    campaigns drill --server secondary --recipients seeds.csv --seconds 60 --live
    """
    if recipients is None:
        raise DrillRefused(_NO_SEEDS)
    with Client(load_settings()) as client:
        chosen = client.settings.server(server or client.settings.servers[0].name).name
        if is_live and not yes:
            _confirm(chosen, seconds, as_json=as_json)
        record = client.drill(
            recipients,
            server=chosen,
            sender=sender or _usual_sender(client),
            is_live=is_live,
            seconds=seconds,
            say=note,
        )
        if as_json:
            print_json(to_dict(record))
        else:
            _print_result(record)
        if record.status != "passed":
            context.exit(1)


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="The last ones."
)
@json_option
def drills(limit: int, as_json: bool) -> None:
    """The drills so far and what they showed; the newest last."""
    with Client(load_settings()) as client:
        every = client.drills(limit)
    if as_json:
        print_json([to_dict(one) for one in every])
        return
    rows = [
        (
            short_time(one.started_at),
            one.server + (" (live)" if one.is_live else ""),
            one.status,
            _seconds(one.detection_seconds),
            _seconds(one.switch_seconds),
            _seconds(one.return_seconds),
            f"{one.sent} of {one.recipients}",
            one.reason,
        )
        for one in every
    ]
    columns = ("at", "server", "status", "noticed>", "switched>", "back>", "sent>", "what was shown")
    print_table(columns, rows, empty="No drill yet. Rehearse a failover with `campaigns drill`.")


def to_dict(record: DrillRecord) -> dict[str, Any]:
    """The object that `--json` prints; times in ISO 8601, UTC."""
    return {
        "server": record.server,
        "live": record.is_live,
        "status": record.status,
        "started_at": iso(record.started_at),
        "finished_at": iso(record.finished_at),
        "detection_seconds": _rounded(record.detection_seconds),
        "switch_seconds": _rounded(record.switch_seconds),
        "return_seconds": _rounded(record.return_seconds),
        "mails": record.recipients,
        "sent": record.sent,
        "lost": record.lost,
        "duplicates": record.duplicates,
        "uncertain": record.uncertain,
        "reason": record.reason,
    }


def _confirm(server: str, seconds: float, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise DrillRefused(f"a live drill takes {server} away from all mail; say that it is meant with --yes")
    click.confirm(
        f"All mail will find {server} dead for {seconds:g} s and go through the others. Go on?", abort=True
    )


def _usual_sender(client: Client) -> str:
    alerts, campaigns = client.settings.alerts, client.ledger.campaigns()
    sender = alerts.sender or alerts.email or (campaigns[-1].sender if campaigns else None)
    if sender is None:
        raise DrillRefused(_NO_SENDER)
    return sender


def _print_result(record: DrillRecord) -> None:
    noticed = "breaker opened after" if record.is_live else "noticed after"
    rows = [
        (noticed, _seconds(record.detection_seconds)),
        ("switched after", _seconds(record.switch_seconds)),
        ("back after", _seconds(record.return_seconds)),
        ("mails accepted", f"{record.sent} of {record.recipients}"),
        ("mails lost", record.lost),
        ("mails accepted twice", record.duplicates),
        ("mails uncertain", record.uncertain),
    ]
    print_table((f"drill of {record.server}", ">"), rows, empty="")
    click.echo(f"The drill was {record.status}: {record.reason}.")


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
