"""The group of all commands: loads each when it is called; expected errors and Ctrl-C are one line."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import click

from campaigns.cli.interruption import INTERRUPTED, begin
from campaigns.cli.output import note, prepare_streams, show_warnings
from campaigns.errors import CampaignsError

# In the order in which one meets them.
_COMMANDS = {
    "init": "configuration",
    "check": "configuration",
    "demo": "local",
    "up": "local",
    "db": "database",
    "send": "sending",
    "status": "status",
    "watch": "status",
    "recipients": "recipients",
    "pause": "operator",
    "resume": "operator",
    "cancel": "operator",
    "retry": "operator",
    "suppress": "suppressions",
    "servers": "servers",
    "events": "servers",
    "drill": "drill",
    "drills": "drill",
    "alerts": "alerts",
}


class Commands(click.Group):
    """Commands that are imported when they are asked for, so that `--help` and typing mistakes are quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(importlib.import_module(f"campaigns.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        resolved = super().resolve_command(ctx, args)
        begin()
        return resolved

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CampaignsError as error:
            for line in str(error).strip().split("\n"):
                note(f"error: {line or type(error).__name__}")
            ctx.exit(1)
        except KeyboardInterrupt:
            note("\nInterrupted.")
            ctx.exit(INTERRUPTED)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `campaigns demo`, or with `campaigns init` and `campaigns up`.",
)
@click.version_option(package_name="campaigns", message="campaigns %(version)s")
def main() -> None:
    """Send mail campaigns over two servers: nobody is lost, nobody gets it twice.

    \b
    campaigns init                       writes a commented campaigns.toml here
    campaigns up                         starts broker and workers
    campaigns send spring --from ...     sends a campaign (see campaigns send --help)
    campaigns watch spring               shows how far it has come

    The configuration is campaigns.toml in the working directory, or the file that CAMPAIGNS_CONFIG names.
    """
    prepare_streams()
    show_warnings()
