"""Campaigns without a pause: a new one whenever the mail that is under way gets less than it should be."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import text

from campaigns.errors import CampaignExists, TransitionRefused
from campaigns.ledger import Ledger, NewRecipient
from campaigns.states import ALIVE
from tests.faults.history import DeliverySeen, Expected

__all__ = ["Traffic", "expected", "insist"]

SENDER = "News <news@example.com>"
SUBJECT = "News for {{ name }}"
TEXT = "Dear {{ name }},\n\nthis is what happened.\n.\n..and a line that begins with dots\n\nYours\n"
SMALLEST, LARGEST = 100, 900
MOST_ALIVE = 2_500
STRANGE = {"rcpt-550-5.1.1": 0.01, "dot-554-5.6.0": 0.003, "greylist": 0.01}
"""The part of the recipients that refuse, and how (`campaigns.demo.smtp_server`)."""
_ALIVE = ", ".join(f"'{state}'" for state in sorted(ALIVE))

Value = TypeVar("Value")


def insist(work: Callable[[], Value], *, seconds: float = 90.0) -> Value:
    """Do it, again and again while the system is not able to. Raises TransitionRefused at once."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except TransitionRefused:
            raise
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def expected(delivery: DeliverySeen) -> Expected:
    """What a mail of the soak must look like: each recipient has a name of their own."""
    name = name_of(delivery.email)
    return Expected(
        envelope_sender="news@example.com",
        envelope_recipient=delivery.email,
        headers={"From": SENDER, "To": delivery.email, "Subject": SUBJECT.replace("{{ name }}", name)},
        text=TEXT.replace("{{ name }}", name),
    )


def name_of(address: str) -> str:
    return f"Ünal {address.partition('@')[0].rpartition('+')[2]}"


class Traffic:
    """`start` it, and it adds and sends campaigns until `end`. `emails`: whom they reach, by campaign.

    `pace`: so many mails a minute on the average; what outages cost is caught up afterwards.
    """

    def __init__(self, ledger: Ledger, *, seed: int, pace: float) -> None:
        self._ledger = ledger
        self._pace = pace / 60
        self._dice = random.Random(f"{seed} traffic")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._started_at = time.monotonic()
        self.emails: dict[str, list[str]] = {}
        self.added = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """The campaign that is being added is still sent."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                if self._is_due() and insist(self.alive) < MOST_ALIVE:
                    self._add()
                else:
                    self._ending.wait(0.2)
        except Exception as failure:
            self.failure = failure

    def _is_due(self) -> bool:
        return self.added <= self._pace * (time.monotonic() - self._started_at + 5.0)

    def alive(self) -> int:
        with self._ledger.database.read() as connection:
            sql = text(f"SELECT count(*) FROM delivery WHERE state IN ({_ALIVE})")
            return int(connection.execute(sql).scalar_one())

    def _add(self) -> None:
        """A third of the recipients come when the campaign is running already."""
        name = f"soak-{len(self.emails) + 1}"
        emails = self._emails(f"s{len(self.emails) + 1}")
        first = len(emails) * 2 // 3
        self.emails[name] = emails
        campaign_id = insist(lambda: self._create(name))
        self._add_recipients(campaign_id, emails[:first])
        # Refused: it was done, its reply was lost, and the campaign is over; or the rest came too late.
        with suppress(TransitionRefused):
            insist(lambda: self._ledger.send(name))
        try:
            self._add_recipients(campaign_id, emails[first:])
        except TransitionRefused:
            if insist(lambda: self._ledger.counts(name)).total == first:
                self.emails[name] = emails[:first]
        self.added += len(self.emails[name])

    def _create(self, name: str) -> int:
        try:
            return self._ledger.create_campaign(name, sender=SENDER, subject=SUBJECT, text=TEXT).id
        except CampaignExists:  # the reply to our own COMMIT was lost
            return self._ledger.campaign(name).id

    def _add_recipients(self, campaign_id: int, emails: list[str]) -> None:
        rows = [
            NewRecipient(
                email=email,
                dedupe_key=email,
                domain=email.rpartition("@")[2],
                fields={"name": name_of(email)},
            )
            for email in emails
        ]
        insist(lambda: self._ledger.add_recipients(campaign_id, rows))

    def _emails(self, label: str) -> list[str]:
        count = self._dice.randint(SMALLEST, LARGEST)
        kinds = ["r", *STRANGE]
        weights = [1 - sum(STRANGE.values()), *STRANGE.values()]
        locals_ = self._dice.choices(kinds, weights, k=count)
        return [f"{local}+{number}.{label}@d{number % 7}.example.com" for number, local in enumerate(locals_)]
