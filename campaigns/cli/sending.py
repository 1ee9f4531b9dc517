"""`campaigns send`: create, import, send; taken up again where it was interrupted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from campaigns.campaign import zoned_time
from campaigns.cli.absence import say_who_is_missing
from campaigns.cli.interruption import INTERRUPTED
from campaigns.cli.output import console, counted, json_option, local_time, note, print_json
from campaigns.cli.status import watch_campaign
from campaigns.client import Client
from campaigns.errors import CampaignsError, UnknownCampaign
from campaigns.recipients import ImportReport
from campaigns.settings import BUILT_IN_STREAMS, DEFAULT_STREAM, load_settings
from campaigns.states import Status
from campaigns.units import Rate

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _when(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not an ISO 8601 time such as 2026-05-01T09:00:00+02:00"
        ) from None
    if moment.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no zone; write 2026-05-01T09:00:00+02:00, or Z for UTC")
    try:
        local_time(moment.timestamp())  # it is told in the operator's own time, too
        return moment.astimezone(UTC)
    except (OverflowError, ValueError, OSError):
        raise click.BadParameter(f"{value!r} is out of the range of time") from None


def _rate(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Rate | None:
    if value is None:
        return None
    try:
        return Rate.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("name")
@click.option("--from", "sender", required=True, metavar="ADDR", help='Such as "News <news@example.com>".')
@click.option("--subject", required=True, help="May hold merge fields: Hi {{ first_name }}.")
@click.option("--html", type=_FILE, help="The HTML part, a Jinja2 template. Without it, --text is needed.")
@click.option("--text", type=_FILE, help="The plain text part; made of the HTML if left out.")
@click.option(
    "--recipients",
    required=True,
    type=_FILE,
    metavar="CSV",
    help="With a header; one column is called email.",
)
@click.option(
    "--stream",
    default=DEFAULT_STREAM,
    show_default=True,
    metavar="|".join(BUILT_IN_STREAMS),
    help="Which servers, in which order; or one of [streams] in campaigns.toml.",
)
@click.option("--at", callback=_when, metavar="TIME", help="Not before, ISO 8601 with zone.")
@click.option("--rate", callback=_rate, metavar="N/s|N/m|N/h|N/d", help="At most.")
@click.option("--watch", is_flag=True, help="Stay, and show how far it has come.")
@json_option
def send(  # noqa: PLR0913, PLR0917 - the options of the command
    name: str,
    sender: str,
    subject: str,
    html: Path | None,
    text: Path | None,
    recipients: Path,
    stream: str,
    at: datetime | None,
    rate: Rate | None,
    watch: bool,
    as_json: bool,
) -> None:
    """Send the campaign NAME to everybody in a CSV file.

    Returns when it is committed; the workers (`campaigns up`) do the rest. Columns of the file are merge
    fields. Rejected lines are listed in a file and stop nothing. If it is interrupted while it imports, the
    same command goes on where it was; Ctrl-C says where the campaign stands.

    \b
    campaigns send spring --from "News <news@example.com>" \\
        --subject "Hi {{ first_name }}" --html spring.html --recipients list.csv --watch
    campaigns send june --from news@example.com --subject News --text june.txt \\
        --recipients list.csv --at 2026-06-01T09:00:00+02:00 --rate 500/m
    """
    if html is None and text is None:
        raise click.UsageError("Give --html, or --text, or both.")
    with _interruption_of(name), Client(load_settings()) as client:
        campaign = client.create_or_resume(
            name,
            sender=sender,
            subject=subject,
            html=html,
            text=text,
            stream=stream,
            rate=rate,
            recipients=recipients,
        )
        report = _import(client, name, recipients)
        told = campaign.send(at=at)
        status = campaign.status().status
        if not as_json:
            _print_report(name, report)
            click.echo(_sent_text(name, status, at))
        if not report.added:
            note(f"note: nobody in {recipients} can be written to; nothing of {name} is sent.")
        say_who_is_missing(client, told=told)
        if watch:
            status = watch_campaign(client, name, file=sys.stderr if as_json else sys.stdout).status
        if as_json:
            print_json({"name": name, "status": str(status), **report.to_dict()})


@contextmanager
def _interruption_of(name: str) -> Iterator[None]:
    """Ctrl-C says where the campaign stands by the ledger: a commit may have come before it."""
    try:
        yield
    except KeyboardInterrupt:
        note("\nInterrupted; " + _standing_text(name))
        click.get_current_context().exit(INTERRUPTED)


def _standing_text(name: str) -> str:
    quoted = shlex.quote(name)
    try:
        status = _status_of(name)
    except CampaignsError:
        return f"`campaigns status {quoted}` tells where {name} stands."
    if status is None:
        return f"{name} was not created, nothing of it is sent."
    if status is Status.DRAFT:
        return f"nothing of {name} is sent. The same command goes on where it was."
    if status is Status.RUNNING:
        return f"{name} is running all the same. Follow it with `campaigns watch {quoted}`."
    if status is Status.SCHEDULED:
        return f"{name} is scheduled all the same. Call it off with `campaigns cancel {quoted}`."
    return f"{name} is {status}."


def _status_of(name: str) -> Status | None:
    """None if there is no such campaign. Asked anew: a connection that was interrupted may be of no use."""
    with Client(load_settings()) as client:
        if client.settings.missing_database_file is not None:
            return None
        try:
            return client.ledger.campaign(name).status
        except UnknownCampaign:
            return None


def _import(client: Client, name: str, file: Path) -> ImportReport:
    """With a progress bar, on a terminal."""
    recipients = client.campaign(name).recipients
    screen = console(stderr=True)
    if not screen.is_terminal:
        return recipients.add_csv(file)
    columns = (
        TextColumn("importing"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]:,} lines"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as progress:
        task = progress.add_task("import", total=1.0, done=0)
        return recipients.add_csv(
            file, on_progress=lambda done, part: progress.update(task, completed=part, done=done)
        )


def _print_report(name: str, report: ImportReport) -> None:
    parts = [f"{report.duplicate:,} duplicate", f"{report.rejected:,} rejected"]
    if report.suppressed:
        parts.append(f"{report.suppressed:,} of them suppressed")
    click.echo(f"{name}: {counted(report.added, 'recipient')} added, {', '.join(parts)}.")
    if report.rejected_file is not None:
        click.echo(f"The rejected lines and why: {report.rejected_file}")


def _sent_text(name: str, status: Status, at: datetime | None) -> str:
    quoted = shlex.quote(name)
    if status is Status.SCHEDULED and at is not None:
        if at <= datetime.now(UTC):
            return f"Its time is past: it starts at once. Follow it with `campaigns watch {quoted}`."
        return f"It starts at {zoned_time(at.timestamp())}. Call it off with `campaigns cancel {quoted}`."
    return f"It is {status}. Follow it with `campaigns watch {quoted}`."
