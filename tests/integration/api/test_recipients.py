"""Adding recipients: what is counted, what is rejected, and what a kill in the middle leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns.campaign import Campaign
from campaigns.client import Client
from campaigns.errors import InvalidRecipients, TemplateError, TransitionRefused
from campaigns.recipients import BATCH, ImportReport
from campaigns.states import State
from tests.integration.api.conftest import write_list

LARGE = 12 * BATCH + 7

IMPORTER = """
import sys
from campaigns.client import Client
from campaigns.settings import Server, Settings
database, directory, path = sys.argv[1:]
servers = (Server(name="primary", host="127.0.0.1", port=1, tls="none"),)
client = Client(Settings(directory=directory, database=database, servers=servers))
done = lambda lines, part: print(lines, flush=True)
client.campaign("spring").recipients.add_csv(path, on_progress=done)
"""


def emails(campaign: Campaign) -> list[str]:
    return [delivery.email for delivery in campaign.deliveries()]


def rejected_lines(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["line"], row["email"]) for row in csv.DictReader(file)]


def test_a_list_is_added_with_duplicates_and_rejected_lines_counted(
    campaign: Campaign, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "email,first_name\nann@example.com,Ann\nANN@Example.COM,Again\nnobody,Bob\nbob@example.com,\n"
    )
    report = campaign.recipients.add_csv(path)
    rejects = Path.cwd() / "spring-rejected.csv"
    assert report == ImportReport(added=2, duplicate=1, rejected=1, rejected_file=rejects)
    assert emails(campaign) == ["ann@example.com", "bob@example.com"]
    assert rejected_lines(rejects) == [("4", "nobody")]
    assert campaign.status().total == campaign.status().counts[State.PENDING] == 2


def test_no_file_is_made_where_nothing_is_rejected(campaign: Campaign, tmp_path: Path) -> None:
    report = campaign.recipients.add_csv(write_list(tmp_path / "list.csv", 3))
    assert report.rejected_file is None
    assert not list(Path.cwd().glob("*rejected*"))


def test_suppressed_addresses_are_added_as_suppressed(
    client: Client, campaign: Campaign, tmp_path: Path
) -> None:
    client.suppressions.add("User2@example.com")
    report = campaign.recipients.add_csv(write_list(tmp_path / "list.csv", 3))
    assert (report.added, report.suppressed) == (3, 1)
    assert [delivery.email for delivery in campaign.deliveries(state="suppressed")] == ["user2@example.com"]


def test_a_field_without_column_or_default_is_an_error_before_anything_is_added(
    campaign: Campaign, tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_text("email,firstname\nann@example.com,Ann\n")
    with pytest.raises(TemplateError, match="first_name"):
        campaign.recipients.add_csv(path)
    assert campaign.status().total == 0


def test_a_default_stands_in_for_a_column(client: Client, tmp_path: Path) -> None:
    campaign = client.create_campaign(
        "summer",
        sender="n@example.com",
        subject="Hi {{ first_name }}",
        text="x",
        defaults={"first_name": "you"},
    )
    path = tmp_path / "list.csv"
    path.write_text("email\nann@example.com\n")
    assert campaign.recipients.add_csv(path).added == 1


def test_the_same_file_again_adds_nobody_and_tells_the_same(campaign: Campaign, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", 30, every_rejected=10, every_duplicate=7)
    first = campaign.recipients.add_csv(path)
    assert campaign.recipients.add_csv(path) == first
    assert campaign.status().total == first.added


def test_a_second_list_has_its_own_list_of_rejected_lines(campaign: Campaign, tmp_path: Path) -> None:
    campaign.recipients.add_csv(write_list(tmp_path / "one.csv", 4, every_rejected=2))
    report = campaign.recipients.add_csv(write_list(tmp_path / "two.csv", 6, every_rejected=3))
    assert (report.added, report.duplicate, report.rejected) == (3, 1, 2)
    assert report.rejected_file == Path.cwd() / "spring-rejected-2.csv"
    assert rejected_lines(Path.cwd() / "spring-rejected.csv")[0][0] == "3"


def test_a_file_that_is_no_list_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("address\nann@example.com\n")
    with pytest.raises(InvalidRecipients, match="email"):
        campaign.recipients.add_csv(path)


def test_addresses_and_mappings_are_added_from_an_iterable(client: Client, campaign: Campaign) -> None:
    def people() -> Iterator[dict[str, str]]:
        for number in range(BATCH + 5):
            yield {"Email": f"user{number}@example.com", "first_name": "Ann"}
        yield {"email": "nobody", "first_name": "Bob"}

    report = campaign.recipients.add(people())
    assert (report.added, report.rejected) == (BATCH + 5, 1)
    assert report.rejected_file is not None
    assert rejected_lines(report.rejected_file) == [(str(BATCH + 6), "nobody")]
    plain = client.create_campaign("plain", sender="n@example.com", subject="x", text="x")
    assert plain.recipients.add(["ann@example.com", "Ann@example.com"]).duplicate == 1


def test_a_mapping_without_a_field_that_the_template_uses_is_an_error(campaign: Campaign) -> None:
    with pytest.raises(TemplateError, match="first_name"):
        campaign.recipients.add([{"email": "ann@example.com"}])
    with pytest.raises(TemplateError, match="first_name"):
        campaign.recipients.add(["ann@example.com"])
    with pytest.raises(InvalidRecipients, match="a mapping with `email`, not int"):
        campaign.recipients.add([5])  # type: ignore[list-item]
    assert campaign.status().total == 0


def test_a_cancelled_campaign_takes_nobody(campaign: Campaign, tmp_path: Path) -> None:
    campaign.cancel()
    with pytest.raises(TransitionRefused):
        campaign.recipients.add_csv(write_list(tmp_path / "list.csv", 3))


@pytest.mark.parametrize("batches", [1, 7])
def test_an_import_that_was_killed_goes_on_where_it_was(
    campaign: Campaign, tmp_path: Path, database_url: str, batches: int
) -> None:
    path = write_list(tmp_path / "list.csv", LARGE, every_rejected=100, every_duplicate=77)
    kill_import_after(database_url, path, batches)
    assert 0 < campaign.status().total < LARGE - LARGE // 100 - LARGE // 77 - 1
    report = campaign.recipients.add_csv(path)
    rejected = LARGE // 100
    assert report.rejected == rejected
    assert report.added + report.duplicate + report.rejected == LARGE
    assert report.added == campaign.status().total == len(set(emails(campaign)))
    assert report.rejected_file is not None
    lines = rejected_lines(report.rejected_file)
    assert lines == [(str(number + 1), f"not-an-address-{number}") for number in range(100, LARGE, 100)]


def kill_import_after(database_url: str, path: Path, batches: int) -> None:
    """Import in a process of its own, which is ended with SIGKILL after so many batches."""
    command = [sys.executable, "-c", IMPORTER, database_url, str(Path.cwd()), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(batches):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_200_000_rows_would_take_less_than_a_minute(campaign: Campaign, tmp_path: Path) -> None:
    """A tenth of them in a tenth of the time."""
    path = write_list(tmp_path / "list.csv", 20_000)
    began = time.monotonic()
    assert campaign.recipients.add_csv(path).added == 20_000
    assert time.monotonic() - began < 6
