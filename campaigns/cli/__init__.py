"""The command line: `campaigns COMMAND`."""

from campaigns.cli.interruption import leave_quietly

__all__ = ["main"]


def main() -> None:
    """Do what the arguments of this process say, and exit."""
    leave_quietly()
    from campaigns.cli.group import main as commands  # noqa: PLC0415 - Ctrl-C is awaited first

    commands(prog_name="campaigns")
