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


@pytest.mark.parametrize("value", [object(), float("nan"), {"deep": [b"bytes"]}])
def test_a_field_that_cannot_be_kept_is_refused_with_the_number_of_its_recipient(
    client: Client, value: object
) -> None:
    plain = client.create_campaign("plain", sender="n@example.com", subject="x", text="x")
    people: list[dict[str, object]] = [
        {"email": "ann@example.com", "x": [1, 2.5, None, {"a": True}]},
        {"email": "bob@example.com", "x": value},
    ]
    with pytest.raises(InvalidRecipients, match=r"^recipient 2: the field 'x' cannot be kept"):
        plain.recipients.add(people)
    assert plain.recipients.add(people[:1]).added == 1


def test_a_name_that_a_file_cannot_have_is_cut_and_told_apart_by_the_campaign(client: Client) -> None:
    made = []
    for name in ("\N{CJK UNIFIED IDEOGRAPH-6625}" * 100, "a b", "a-b", "a/b".replace("/", ":")):
        plain = client.create_campaign(name, sender="n@example.com", subject="x", text="x")
        report = plain.recipients.add(["nobody"])
        assert report.rejected_file is not None and report.rejected_file.exists()
        made.append(report.rejected_file.name)
    ids = [record.id for record in client.ledger.campaigns()]
    assert made[0] == "\N{CJK UNIFIED IDEOGRAPH-6625}" * 33 + f"-{ids[0]}-rejected.csv"
    assert made[1:] == [f"a-b-{ids[1]}-rejected.csv", "a-b-rejected.csv", f"a-b-{ids[3]}-rejected.csv"]


def test_rejected_lines_are_never_written_over_anything_else(
    client: Client, campaign: Campaign, tmp_path: Path
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    Path("spring-rejected.csv").write_text("mine")
    Path("spring-rejected-2.csv").symlink_to(precious)
    Path("spring-rejected-3.csv").symlink_to(tmp_path / "nowhere")
    os.mkfifo("spring-rejected-4.csv")
    Path("spring-rejected-5.csv").write_text("line,email,reason\r\n4,somebody,else\r\n")
    path = write_list(tmp_path / "list.csv", 4, every_rejected=2)
    report = campaign.recipients.add_csv(path)
    assert report.rejected_file == Path.cwd() / "spring-rejected-6.csv"
    assert [line for line, _ in rejected_lines(report.rejected_file)] == ["3", "5"]
    assert campaign.recipients.add_csv(path) == report
    assert campaign.recipients.add([{"email": "no", "first_name": ""}]).rejected_file == (
        Path.cwd() / "spring-rejected-7.csv"
    )
    assert (Path("spring-rejected.csv").read_text(), precious.read_text()) == ("mine", "precious")
    assert not (tmp_path / "nowhere").exists()
    assert "somebody" in Path("spring-rejected-5.csv").read_text()
    report.rejected_file.unlink()
    Path("spring-rejected-7.csv").unlink()
    assert campaign.recipients.add_csv(path).rejected_file is None


def test_an_import_that_is_taken_up_again_goes_on_with_its_own_file_alone(
    client: Client, campaign: Campaign, tmp_path: Path
) -> None:
    path = write_list(tmp_path / "list.csv", 40, every_rejected=10)
    Path("spring-rejected.csv").write_text("mine")

    class Killed(BaseException):
        pass

    def kill(lines: int, part: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        campaign.recipients.add_csv(path, on_progress=kill)
    own = Path.cwd() / "spring-rejected-2.csv"
    whole = own.read_bytes()
    own.write_bytes(whole[:60])  # a kill leaves a part
    report = campaign.recipients.add_csv(path)
    assert (report.rejected_file, own.read_bytes()) == (own, whole)
    assert Path("spring-rejected.csv").read_text() == "mine"
    assert len(list(Path.cwd().glob("*rejected*"))) == 2


def test_a_list_of_rejected_lines_is_for_its_owner_and_runs_nothing(campaign: Campaign) -> None:
    wicked = ["=1+1|cmd", "@sum(a)", "a\x1b[31m\u202eb", "+1"]
    umask = os.umask(0o022)
    try:
        report = campaign.recipients.add({"email": one, "first_name": ""} for one in wicked)
        given = Path("given.csv")
        campaign.recipients.add([{"email": "no", "first_name": ""}], rejected_file=given)
    finally:
        os.umask(umask)
    assert report.rejected_file is not None
    assert [email for _, email in rejected_lines(report.rejected_file)] == [
        "'=1+1|cmd",
        "'@sum(a)",
        "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b",
        "'+1",
    ]
    assert "\x1b" not in report.rejected_file.read_text()
    assert [path.stat().st_mode & 0o777 for path in (report.rejected_file, given)] == [0o600, 0o600]


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


@pytest.mark.parametrize("then", ["as it was", "longer"])
def test_a_list_that_is_rewritten_while_it_is_imported_can_be_completed(
    client: Client, campaign: Campaign, tmp_path: Path, then: str
) -> None:
    path = write_list(tmp_path / "list.csv", 5 * BATCH, every_rejected=100)

    def rewrite(lines: int, part: float) -> None:
        if lines == 2 * BATCH:
            path.write_text("email,first_name\n" + "eve@example.com,Eve\n" * 500)

    with pytest.raises(InvalidRecipients, match=r"list\.csv was changed while it was read"):
        campaign.recipients.add_csv(path, on_progress=rewrite)
    (left,) = client.ledger.imports(client.ledger.campaign("spring").id)
    assert (left.finished, left.position) == (False, 2 * BATCH)
    rows = 5 * BATCH if then == "as it was" else 6 * BATCH
    report = campaign.recipients.add_csv(write_list(path, rows, every_rejected=100))
    assert report.added + report.duplicate + report.rejected == rows
    assert sorted(emails(campaign)) == sorted(
        f"user{number}@example.com" for number in range(1, rows + 1) if number % 100
    )


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
    began = time.process_time()  # what others do on this machine does not count
    assert campaign.recipients.add_csv(path).added == 20_000
    assert time.process_time() - began < 6
