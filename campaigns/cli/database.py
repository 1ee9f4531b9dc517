"""`campaigns db`: the database's tables."""

from __future__ import annotations

import click

from campaigns.client import Client
from campaigns.settings import load_settings


@click.group()
def db() -> None:
    """Create the database's tables, or bring them up to date."""


@db.command()
def upgrade() -> None:
    """Create the tables, or change them to what this version needs. Safe to run at any time, also twice."""
    with Client(load_settings()) as client:
        client.upgrade_database()
    click.echo("The database is up to date.")
