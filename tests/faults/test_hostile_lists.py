"""Lists made to break out of a header, an envelope or a body. What arrives is what was meant, or nothing."""

import csv
import email
import email.policy
from pathlib import Path

from campaigns.client import Client
from campaigns.demo.mail_record import AcceptedMail
from campaigns.states import State
from tests.faults.trial import Trial, Trials

TEXT = "Dear {{ name }},\n{{ name }}\n.\n..\nend\n"
ZERO = "zero@example.com"
"""Has a NUL in its name."""
NAMES = [
    "Ada",
    "Ünal Öztürk",
    "李雷",
    "Ada\r\nBcc: eve@evil.example",
    "Ada\nBcc: eve@evil.example",
    "Ada\rBcc: eve@evil.example",
    "Ada\r\n\r\nanother body",
    "Ada\r\n.\r\nMAIL FROM:<eve@evil.example>\r\nRCPT TO:<eve@evil.example>\r\nDATA\r\n",
    "=?utf-8?q?Ada=0D=0ABcc:_eve@evil.example?=",
    "=?utf-8?b?QWRhDQpCY2M6IGV2ZUBldmlsLmV4YW1wbGU=?=",
    "Ada\u2028Bcc: eve@evil.example\u2029Bcc: eve@evil.example\u0085Bcc: eve@evil.example",
    "Ada\x0bBcc: eve@evil.example\x0cBcc: eve@evil.example",
    "\u202eadA\u2066 \u2069\u200f",
    "Ada\x1b[2J",
    ".",
    "..",
    "\n.\n",
    "\r\n.\r\n",
    "x" * 5_000,
    "x " * 5_000,
    "{{ 7 * 7 }}{% raw %}",
    '"quoted" <eve@evil.example>, eve@evil.example',
    "\ufeffAda\ufffd\U0001f600\U000e0041",
    "",
]
GOOD = [f"name{number}@example.com" for number in range(len(NAMES))]
BAD_ADDRESSES = [
    "",
    "no-at-sign",
    "a@b@c.example.com",
    "eve@evil.example,ada@example.com",
    "ada@example.com\r\nRCPT TO:<eve@evil.example>",
    "ada@example.com> SIZE=1",
    "ada @example.com",
    "ada\u2028@example.com",
    "ada@exa\nmple.com",
    "@example.com",
    "ada@",
    "x" * 300 + "@example.com",
    "ada@" + "x" * 300 + ".com",
    "\u202eada@example.com",
]
DUPLICATES = ["NAME0@example.com", " name1@EXAMPLE.com ", "<name2@example.com>"]
HEADERS = {
    "from", "to", "subject", "date", "message-id", "mime-version", "content-type",
    "content-transfer-encoding",
}  # fmt: skip


NO_HEADER_HOLDS = [
    name
    for name in NAMES
    if len(name) > 9_999 or "=?" in name or set(name.strip()) & set("\r\n\x0b\x0c\x1b\u0085\u2028\u2029")
]
SUBJECTS = {"in the subject": "Hi {{ name }}", "in the body alone": "Hi"}


def _written(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["email", "name"])
        writer.writerows((address, name) for address, name in zip(GOOD, NAMES, strict=True))
        writer.writerows([address, "Eve"] for address in [*BAD_ADDRESSES, *DUPLICATES])
    return path


def test_a_hostile_list_reaches_those_whom_it_names_and_nobody_else(
    new_trial: Trials, tmp_path: Path
) -> None:
    trial = new_trial(body="unused")
    trial.start_workers()
    for name, subject in SUBJECTS.items():
        _send(trial, name, subject, _written(tmp_path / "hostile.csv"))
    trial.verdict(*SUBJECTS, emails={name: [*GOOD, ZERO] for name in SUBJECTS})
    mails = trial.accepted()
    assert {mail.recipient for mail in mails} <= {*GOOD, ZERO}, "one recipient each, from the list"
    for mail in mails:
        _is_what_was_meant(mail)
    refused = {name: trial.states(name).get(State.FAILED, 0) for name in SUBJECTS}
    assert refused["in the subject"] == len(NO_HEADER_HOLDS) + 1, "these, and the NUL, and no other"
    assert refused["in the body alone"] <= 1, "a body holds everything but NUL"


def _send(trial: Trial, name: str, subject: str, file: Path) -> None:
    """From a file, and, with what no text file may hold, from a program."""
    with Client(trial.settings) as client:
        campaign = client.create_campaign(name, sender="News <news@example.com>", subject=subject, text=TEXT)
        report = campaign.recipients.add_csv(file, rejected_file=file.with_name(f"{name}.csv"))
        assert (report.added, report.duplicate) == (len(GOOD), len(DUPLICATES))
        assert report.rejected == len(BAD_ADDRESSES)
        campaign.recipients.add([{"email": ZERO, "name": "Ada\x00 Zero"}])
        campaign.send()


def _is_what_was_meant(mail: AcceptedMail) -> None:
    assert mail.data is not None
    raw = mail.data.encode("latin-1")
    assert not set(b"\r\n\x00") & set(raw.replace(b"\r\n", b"")), "no bare CR or LF, no NUL"
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert sorted(name.lower() for name in parsed) == sorted(HEADERS)
    assert str(parsed["To"]) == mail.recipient
    assert not parsed.defects
    lines = parsed.get_content().splitlines()
    assert lines[-3:] == [".", "..", "end"], "nothing is cut off at a lone dot"
