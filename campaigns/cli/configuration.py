"""`campaigns init` and `campaigns check`."""

from __future__ import annotations

from pathlib import Path

import click

from campaigns.cli.output import json_option, note, print_json, print_table
from campaigns.errors import SettingsError

TEMPLATE = Path(__file__).with_name("sample.toml")


@click.command()
def init() -> None:
    """Write a commented campaigns.toml here. Never overwrites one.

    It works as it is, with a database in a file and a broker of its own; the two mail servers in it are
    examples to put your own in.
    """
    target = Path("campaigns.toml")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise SettingsError("campaigns.toml is there already; it was not changed") from None
    except OSError as error:
        raise SettingsError(f"campaigns.toml cannot be written here: {error.strerror}") from error
    click.echo(
        "Wrote campaigns.toml. Put your mail servers in, then run `campaigns check` and `campaigns up`."
    )


@click.command()
@json_option
@click.pass_context
def check(context: click.Context, as_json: bool) -> None:
    """Try the database, the broker and each server (connect, TLS, login): what works, what does not.

    No mail is sent. The exit status is 0 if all of it works, otherwise 1. A note is no failure: it tells of
    what the configuration allows and is seldom meant.
    """
    from campaigns.checks import run_checks  # noqa: PLC0415 - celery and the drivers take a while to load
    from campaigns.settings import load_settings  # noqa: PLC0415

    findings = run_checks(load_settings())
    if as_json:
        print_json([finding.to_dict() for finding in findings])
    else:
        rows = [(item.verdict, item.name, item.detail) for item in findings]
        print_table(("", "what", "found"), rows, empty="")
    if not all(finding.ok for finding in findings):
        note("Something does not work yet: see above.")
        context.exit(1)
