"""The command line: `campaigns COMMAND`."""

from campaigns.cli.group import main

__all__ = ["main"]
