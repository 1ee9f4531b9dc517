"""Transactional mail during a large campaign: how long from `send()` until a server has accepted it.

    python -m bench.overtaking [--recipients 100000] [--mails 10] [--postgresql]

Prints each and the longest, and what the campaign sent per second meanwhile. The exit status is 1 if one took
longer than 2 seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from bench.installation import Installation, fresh_database, wait
from campaigns.states import State

LIMIT_SECONDS = 2.0
APART_SECONDS = 1.5
WARM_UP = 2_000


def measure(installation: Installation, recipients: int, mails: int) -> dict[str, object]:
    client = installation.client
    installation.add_campaign("spring", recipients)
    urgent = [
        client.create_campaign(
            f"password-{number}",
            sender="Service <service@example.com>",
            subject="Your password",
            text="Here it is.",
            stream="transactional",
        )
        for number in range(mails)
    ]
    for number, campaign in enumerate(urgent):
        campaign.recipients.add([{"email": f"urgent-{number}@example.org"}])
    client.campaign("spring").send()
    wait(lambda: _sent(installation) > WARM_UP, 120, "the campaign does not begin")
    before, began = _sent(installation), time.monotonic()
    sent_at = {}
    for number, campaign in enumerate(urgent):
        sent_at[f"urgent-{number}@example.org"] = time.time()
        campaign.send()
        time.sleep(APART_SECONDS)
    rate = (_sent(installation) - before) / (time.monotonic() - began)
    left = recipients - _sent(installation)
    wait(lambda: all(c.status().counts[State.SENT] for c in urgent), 60, "urgent mail was not sent")
    client.campaign("spring").cancel()
    seconds = _waits(installation, sent_at)
    return {
        "recipients": recipients,
        "left_of_the_campaign": left,
        "campaign_mails_per_second": round(rate, 1),
        "seconds": seconds,
        "longest_seconds": max(seconds),
    }


def _sent(installation: Installation) -> int:
    return installation.client.ledger.counts("spring").states[State.SENT]


def _waits(installation: Installation, sent_at: dict[str, float]) -> list[float]:
    accepted = {
        mail.recipient: mail.at
        for server in (installation.primary, installation.secondary)
        for mail in server.records()
        if mail.recipient in sent_at
    }
    return [round(accepted[email] - at, 3) for email, at in sent_at.items()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipients", type=int, default=100_000)
    parser.add_argument("--mails", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--postgresql", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        fresh_database(postgresql=options.postgresql) as database,
        Installation(
            Path(directory),
            database=database,
            processes=options.processes,
            connections=options.connections,
        ) as installation,
    ):
        found = measure(installation, options.recipients, options.mails)
    print(json.dumps(found, indent=2))
    return 0 if float(str(found["longest_seconds"])) <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
