"""Lists of any bytes: an error that names the place, or rows that add up."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from campaigns.campaign import Campaign
from campaigns.client import Client
from campaigns.csv_file import BadRow, Row, read_csv
from campaigns.errors import InvalidRecipients
from campaigns.ledger import Ledger
from campaigns.settings import Server, Settings
from tests.fuzz.budget import fuzzed

ADDRESSES = st.sampled_from(
    ["a@example.com", "A@EXAMPLE.com", "b@example.com", "no address", "", "jörg@bücher.example", "=1+1"]
)
NASTY = st.sampled_from(
    [
        *("\r", "\n", "\r\n", '"', '""', '"\n', 'a","', ",", ";", "\t", "|", " ", "sep=;\n", "email"),
        *(
            "\x0b",
            "\x0c",
            "\x1a",
            "\x1b[2J",
            "\x85",
            "\u2028",
            "\ufeff",
            "\u202e",
            "\ufffd",
            "é",
            "\U0001f600",
        ),
    ]
)
SOUP = st.lists(NASTY | ADDRESSES | st.text(max_size=5), max_size=40).map("".join)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1")
HEADERS = st.sampled_from(
    [
        "email\n",
        "email,name\n",
        "name;Email\r\n",
        "\n\nemail\tname\r",
        "sep=;\nemail;name\n",
        '"email","na\nme"\n',
    ]
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Half of them begin like a list; some are pure noise."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    text = (draw(HEADERS) if draw(st.booleans()) else "") + draw(SOUP)
    data = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at:]
    return data


def rows_of(path: Path, data: bytes) -> list[Row | BadRow] | None:
    """The rows, or None where the file as a whole is refused: then the error says which and what to do."""
    path.write_bytes(data)
    try:
        return list(read_csv(path).rows())
    except InvalidRecipients as error:
        refusal = str(error)
    assert str(path) in refusal
    return None


@fuzzed(600)
@given(data=files())
@example(data=b'sep="\nemail"name\na@example.com"x\n')
@example(data=b"sep=\r\nemail\rname\na@example.com\rx\n")
@example(data=b"sep= \nemail name\na@example.com x\n")
@example(data=b"sep=e\nemail\na@example.com\n")
@example(data="sep=\0\nemail\0name\na@example.com\0x\n".encode("utf-16"))
@example(data=codecs.BOM_UTF16_LE + b"\x00")
@example(data=codecs.BOM_UTF16_LE + b"\x00\xd8e\x00")
@example(data="email,na\0me\na@example.com,x\n".encode("utf-16"))
@example(data="email,name\na@example.com,x\0y\n".encode("utf-16"))
@example(data=("email,name\n" + "a@example.com,Zoë\n" * 20).encode() + b"a@example.com,Zo\xeb\n")
@example(data=b"email,Zo\xeb\n" + "a@example.com,Zoë Zoë Zoë Zoë\n".encode() * 4)
@example(data=codecs.BOM_UTF32_LE + "email\na@example.com\n".encode("utf-32-le"))
def test_any_bytes_are_refused_by_name_or_are_rows_in_their_order(tmp_path: Path, data: bytes) -> None:
    rows = rows_of(tmp_path / "list.csv", data)
    event("refused" if rows is None else f"{min(len(rows), 3)} rows or more")
    if rows is None:
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines)) and all(line >= 1 for line in lines)
    assert [row.position for row in rows] == sorted({row.position for row in rows})
    for row in rows:
        if isinstance(row, BadRow):
            assert row.reason
            continue
        assert row.email == row.email.strip()
        for text in (*row.values, *row.values.values()):
            assert "\0" not in text
            text.encode()  # what no database keeps is in no row


WORDS = st.sampled_from(["", " ", "a@example.com", "x", "é", "no address", "\x1b", "\u2028", "=1"])
LONG = st.sampled_from([1 << 16, (1 << 16) - 1, (1 << 16) + 1, 200_000])


@fuzzed(150)
@given(
    rows=st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=12),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    length=st.none() | LONG,
)
@example(rows=[["x"]], ending="\n", length=1 << 16)
def test_without_quotes_each_line_is_one_row_however_long(
    tmp_path: Path, rows: list[list[str]], ending: str, length: int | None
) -> None:
    """A line that is too long is one bad row: what stands at its end is nobody's address."""
    lines = [",".join(row) for row in rows]
    if length is not None and lines:
        lines[len(lines) // 2] = "x" * length + "eve@example.com"
    found = rows_of(tmp_path / "list.csv", ending.join(["email,name", *lines, ""]).encode())
    assert found is not None
    expected = [number for number, line in enumerate(lines, 2) if line.replace(",", " ").strip(" ")]
    assert [row.line for row in found] == expected
    assert all("eve" not in row.email for row in found if isinstance(row, Row))


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20) | NASTY


@fuzzed(150)
@given(
    rows=st.lists(st.tuples(ADDRESSES, VALUES), max_size=10),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_spreadsheet_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, encoding: str, ending: str
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([("email", "name"), *rows])
    found = rows_of(tmp_path / "list.csv", stream.getvalue().encode(encoding))
    assert found is not None and all(isinstance(row, Row) for row in found)
    kept = [(email, name) for email, name in rows if email or name]
    assert [(row.values["email"], row.values["name"]) for row in found if isinstance(row, Row)] == [
        (email.strip(), name.strip()) for email, name in kept
    ]


@fuzzed(150)
@given(
    noise=st.lists(st.text('a"\n,x\r', max_size=12), max_size=6),
    good=st.integers(1, 30),
)
def test_quotes_gone_wrong_never_cost_a_row_that_has_none_near_it(
    tmp_path: Path, noise: list[str], good: int
) -> None:
    """Between noise and the good rows stands a line that no quoted field can hold and go on."""
    wall = 'wall,"wall"wall\n'
    rows = "".join(f"u{number}@example.com,x\n" for number in range(good))
    data = "email,name\n" + "\n".join(noise) + "\n" + wall + wall + rows
    found = rows_of(tmp_path / "list.csv", data.encode())
    assert found is not None
    emails = [row.email for row in found if isinstance(row, Row)]
    assert emails[-good:] == [f"u{number}@example.com" for number in range(good)]


STRAY = st.sampled_from(["", "", "", "", '"', '""'])


@fuzzed(300)
@given(quotes=st.lists(st.tuples(STRAY, STRAY, STRAY, STRAY), min_size=1, max_size=8))
@example(quotes=[("", "", '"', ""), ("", "", "", ""), ("", "", "", '"')])
@example(quotes=[("", "", '"', ""), ("", '"', "", "")])
def test_whoever_stands_in_a_line_with_stray_quotes_is_added_or_rejected(
    tmp_path: Path, quotes: list[tuple[str, str, str, str]]
) -> None:
    lines = [f"{a}u{n}@example.com{b},{c}x{d}\n" for n, (a, b, c, d) in enumerate(quotes, 2)]
    found = rows_of(tmp_path / "list.csv", ("email,name\n" + "".join(lines)).encode())
    assert found is not None
    assert [row.line for row in found] == list(range(2, len(lines) + 2))


def test_a_file_whose_every_line_opens_a_quote_takes_time_that_grows_with_its_length(
    tmp_path: Path,
) -> None:
    def seconds(lines: int) -> float:
        begun = time.process_time()
        rows = rows_of(tmp_path / "list.csv", b"email,name\n" + b'a","\n' * lines + b"b@example.com,x\n")
        assert rows is not None and [row.line for row in rows] == list(range(2, lines + 3))
        return time.process_time() - begun

    assert seconds(6_000) < 8 * seconds(1_500)  # with the square of its length it would be 16 times


def test_a_field_of_many_lines_is_a_field(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "list.csv", b'email,name\na@example.com,"' + b"x\n" * 199 + b'"\n')
    assert rows is not None and isinstance(rows[0], Row) and rows[0].values["name"].count("x") == 199


@pytest.fixture
def client(database_url: str, tmp_path: Path) -> Iterator[Client]:
    servers = (Server(name="primary", host="127.0.0.1", port=1, tls="none"),)
    with Client(Settings(directory=tmp_path, database=database_url, servers=servers)) as client:
        yield client


def draft(client: Client, numbers: Iterator[int]) -> Campaign:
    return client.create_campaign(
        f"spring-{next(numbers)}", sender="News <news@example.com>", subject="Hi", text="Hello"
    )


@fuzzed(40)
@given(data=files())
@example(data="email,na\0me\na@example.com,x\nb@example.com,y\n".encode("utf-16"))
@example(data=b"email,Zo\xeb\n" + "a@example.com,Zoë Zoë Zoë Zoë Zoë\n".encode() * 4)
def test_every_row_of_a_list_is_added_a_duplicate_or_rejected(
    client: Client, ledger: Ledger, tmp_path: Path, data: bytes
) -> None:
    path, rejected = tmp_path / "list.csv", tmp_path / "rejected.csv"
    rejected.unlink(missing_ok=True)
    rows = rows_of(path, data)
    campaign = draft(client, NUMBERS)
    if rows is None:
        with pytest.raises(InvalidRecipients):
            campaign.recipients.add_csv(path, rejected_file=rejected)
        assert campaign.status().total == 0
        return
    report = campaign.recipients.add_csv(path, rejected_file=rejected)
    event("with rejected rows" if report.rejected else "without rejected rows")
    assert report.added + report.duplicate + report.rejected == len(rows)
    assert campaign.status().total == report.added == len(list(campaign.deliveries()))
    listed = rejected.read_text(encoding="utf-8") if report.rejected else "line,email,reason\r\n"
    assert len(list(csv.reader(io.StringIO(listed)))) == report.rejected + 1
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u202e]", listed)


NUMBERS = itertools.count()
