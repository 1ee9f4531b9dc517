"""What is not there to carry the mail, said once and in the same words by every command that starts some."""

from __future__ import annotations

from campaigns.cli.output import note
from campaigns.client import Client


def say_who_is_missing(client: Client, *, told: bool) -> None:
    """One note at most: without workers the broker does not matter yet. `told`: the broker was there."""
    missing = client.servers_without_worker()
    if len(missing) == len(client.settings.servers):
        note("note: no worker is running; the mail goes out when one is (`campaigns up`).")
    elif not told:
        note("note: the broker is not there; the mail goes out when it is back.")
    elif missing:
        note(f"note: nobody works for {', '.join(missing)}; the other servers carry its mail.")
