"""Lists in CSV files: any common one is read, the rest is refused with place and remedy."""

import codecs
import csv
import io
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.csv_file import BadRow, Row, read_csv
from campaigns.errors import InvalidRecipients
from tests.unit.strategies import REPEATABLE

_NAMES = "email,name\nanna@example.com,Zoë Müller\nbert@example.com,Łódź\n"


def written(directory: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = directory / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(directory: Path, content: str | bytes, encoding: str = "utf-8") -> list[Row | BadRow]:
    return list(read_csv(written(directory, content, encoding)).rows())


def values(rows: list[Row | BadRow]) -> list[dict[str, str]]:
    assert all(isinstance(row, Row) for row in rows), rows
    return [dict(row.values) for row in rows if isinstance(row, Row)]


def refusal(directory: Path, content: str | bytes) -> str:
    with pytest.raises(InvalidRecipients) as caught:
        read_csv(written(directory, content))
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_files_are_read_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    assert [row["name"] for row in values(read(tmp_path, _NAMES, encoding))] == ["Zoë Müller", "Łódź"]


def test_a_latin_1_letter_far_behind_the_beginning_is_found(tmp_path: Path) -> None:
    many = "".join(f"u{number}@example.com,Anna\n" for number in range(40_000))
    content = ("email,name\n" + many + "z@example.com,Zoë \u2013 5 €\n").encode("cp1252")
    file = read_csv(written(tmp_path, content))
    assert file.encoding == "cp1252"
    assert list(file.rows())[-1] == Row(
        line=40_002, position=40_001, values={"email": "z@example.com", "name": "Zoë \u2013 5 €"}
    )


def test_latin_1_with_bytes_that_cp1252_lacks_is_read_too(tmp_path: Path) -> None:
    assert values(read(tmp_path, b"email,name\na@example.com,Zo\xeb\x81\n"))[0]["name"] == "Zoë\x81"


def test_one_broken_byte_in_a_utf_8_file_costs_its_row_alone(tmp_path: Path) -> None:
    good = "".join(f"u{number}@example.com,Zoë\n" for number in range(50))
    rows = read(tmp_path, ("email,name\n" + good).encode() + b"x@example.com,Zo\xeb\n")
    assert values(rows[:-1])[0]["name"] == "Zoë"
    assert rows[-1] == BadRow(line=52, position=51, reason="It holds bytes that are not UTF-8.")


def test_a_letter_split_between_two_chunks_is_no_broken_letter(tmp_path: Path) -> None:
    head = b"email,name\na@example.com,"
    content = head + b"x" * 99 + b"\n" + b"b@example.com,y\n" * 16_375
    content += b"c@example.com," + b"z" * ((1 << 18) - len(content) - 15) + "ë\n".encode()
    assert content[(1 << 18) - 1 : (1 << 18) + 1] == "ë".encode()
    assert read_csv(written(tmp_path, content)).encoding == "utf-8-sig"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    content = (
        f'name{delimiter}E-Mail x{delimiter} EMail \n"a, b; c"{delimiter}1,5;2{delimiter}anna@example.com\n'
    )
    if delimiter in ",;":
        content = content.replace("1,5;2", "15")
    (row,) = values(read(tmp_path, content))
    assert row["email"] == "anna@example.com"
    assert row["name"] == "a, b; c"


def test_columns_stand_in_any_order_and_email_is_spelt_anyhow(tmp_path: Path) -> None:
    file = read_csv(written(tmp_path, "First Name, EMAIL ,city\nAnna,anna@example.com,Rom\n"))
    assert file.columns == ("First Name", "email", "city")
    (row,) = file.rows()
    assert isinstance(row, Row)
    assert row.email == "anna@example.com"
    assert row.values["First Name"] == "Anna"


def test_a_quoted_line_end_belongs_to_the_value_and_lines_are_counted(tmp_path: Path) -> None:
    rows = read(tmp_path, 'email,note\r\na@example.com,"one\r\ntwo ""2"""\r\nb@example.com,x\r\n')
    assert rows == [
        Row(line=2, position=1, values={"email": "a@example.com", "note": 'one\r\ntwo "2"'}),
        Row(line=4, position=2, values={"email": "b@example.com", "note": "x"}),
    ]


def test_excels_hint_and_blank_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    rows = read(tmp_path, "sep=;\r\n\r\nemail;name\r\n\r\na@example.com;x\r\n;\r\n")
    assert values(rows) == [{"email": "a@example.com", "name": "x"}]


def test_a_comma_after_excels_hint_is_part_of_the_value(tmp_path: Path) -> None:
    assert values(read(tmp_path, "sep=;\nemail,x;email\n1;a@example.com\n"))[0]["email,x"] == "1"


def test_an_empty_value_is_an_empty_value(tmp_path: Path) -> None:
    assert values(read(tmp_path, "email,name\na@example.com,\n")) == [{"email": "a@example.com", "name": ""}]


def test_rows_with_too_few_or_too_many_fields_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = read(
        tmp_path, "email,name\na@example.com\nb@example.com,x,y\nc@example.com,x,,\nd@example.com,x\n"
    )
    assert rows[0] == BadRow(line=2, position=1, reason="1 field, but the header has 2.")
    assert rows[1] == BadRow(line=3, position=2, reason="3 fields, but the header has 2.")
    assert [row["email"] for row in values(rows[2:])] == ["c@example.com", "d@example.com"]


def test_a_quote_that_is_never_closed_costs_its_line_alone(tmp_path: Path) -> None:
    many = "".join(f"u{number}@example.com,x\n" for number in range(10_000))
    rows = read(tmp_path, 'email,name\na@example.com,"open\n' + many)
    assert isinstance(rows[0], BadRow)
    assert (rows[0].line, "quote" in rows[0].reason) == (2, True)
    assert len(values(rows[1:])) == 10_000
    assert rows[-1] == Row(line=10_002, position=10_001, values={"email": "u9999@example.com", "name": "x"})


def test_a_text_behind_a_quoted_value_is_a_bad_row(tmp_path: Path) -> None:
    rows = read(tmp_path, 'email,name\na@example.com,"x"y\nb@example.com,z\n')
    assert isinstance(rows[0], BadRow)
    assert values(rows[1:]) == [{"email": "b@example.com", "name": "z"}]


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ('email,name\na@example.com,"Anna\nb@example.com,Bert\nc@example.com,Carl"\n', {2, 3, 4}),
        ('email,name\na@example.com,"Anna\nc@example.com,Carl"\n', {2, 3}),
        ('email,name\n"a@example.com,Anna\nc@example.com,Carl"\n', {2, 3}),
        ('email,name\n"a@example.com,Anna\nc@example.com",Carl\n', {2, 3}),
        ('email,name\na@example.com,"A\n\nnobody,B\nb@example.com,""\nc@example.com,C"\n', {2, 4, 5, 6}),
        ('email, name\na@example.com, "Anna\nc@example.com, Carl"\n', {2, 3}),
        ('name,email\n"Anna,a@example.com\nBert,b@example.com"\n', {2, 3}),
        ('name,email\n"Anna,a@example.com\nBert,b@example.com\nCarl",c@example.com\n', {2, 3, 4}),
        ('name;email;x\nA;"a@example.com;R\n"";b@example.com;B\nC;c@example.com";U\n', {2, 3, 4}),
    ],
)  # fmt: skip
def test_whom_a_stray_quote_swallows_is_told_of_line_by_line(
    tmp_path: Path, content: str, refused: set[int]
) -> None:
    *rows, last = read(tmp_path, content + "z@example.com;z;z\n".replace(";", "," if "," in content else ";"))
    assert {row.line for row in rows} == refused
    assert all(isinstance(row, BadRow) and "quote that is too many" in row.reason for row in rows)
    assert last.line == content.count("\n") + 1


@pytest.mark.parametrize(
    "text",
    [
        "Blume & Co.\nLangstr. 5, Hof\n95028 Hof",
        "one, two\nthree, four\n",
        "Please write to bert@example.com, not to me,\nor to Bert <bert@example.com>, his name\n",
        "He said\nask bert@example.com, he knows\nbert@example.com, he knows\nAsk Bert, bert@example.com\n",
        "Mail:\nbert@example.com\n",
        "@all, hello\n@anna, hello\nx@y, hello",
        'a "word",\nanother "word", bert@example.com\n',
    ],
)
@pytest.mark.parametrize("header", ["email,note", "note,email", "note,email,more"])
def test_a_text_of_several_lines_stays_a_text(tmp_path: Path, header: str, text: str) -> None:
    names = header.split(",")
    row = {"email": "a@example.com", "note": text, "more": "last\nline, x"}
    stream = io.StringIO(newline="")
    csv.DictWriter(stream, names, extrasaction="ignore").writerows([row, row])
    found = values(read(tmp_path, header + "\n" + stream.getvalue()))
    assert found == [{name: row[name].strip() for name in names}] * 2


def test_a_cell_names_nobody_as_a_recipient(tmp_path: Path) -> None:
    content = 'email,name\na@example.com,"Ada\neve@evil.example,Eve\n"\nb@example.com,x\n'
    rows = read(tmp_path, content)
    assert [row.email for row in rows if isinstance(row, Row)] == ["b@example.com"]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "is empty" in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name,city\nAnna,Rom\n", "line 1: no column is named `email` (columns: `name`, `city`)"),
        ("e-mail;name\na@example.com;x\n", "`e-mail`"),
        ("email,name,name\na@example.com,x,y\n", "line 1: the column `name` is there twice"),
        ("email,Email\na@example.com,x\n", "line 1: the column `email` is there twice"),
        ("\n\nname\n", "line 3: no column"),
        (b"email,name\na@example.com,x\nb@example.com,\0\n", "line 3: a NUL byte"),
        ("email,name\na@example.com,x\n".encode("utf-16-le"), "NUL byte"),
        (b"PK\x03\x04\x14\x00", "Excel"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel"),
        (b"%PDF-1.7", "PDF"),
        (b"\x1f\x8b\x08\x00", "gzipped"),
    ],
)
def test_what_is_no_list_is_refused_with_place_and_remedy(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    assert said in refusal(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipients, match="No such file"):
        read_csv(tmp_path / "none.csv")


def test_unnamed_columns_are_left_out(tmp_path: Path) -> None:
    assert values(read(tmp_path, "email,,name,\na@example.com,1,x,\n")) == [
        {"email": "a@example.com", "name": "x"}
    ]


def test_a_position_is_where_reading_goes_on(tmp_path: Path) -> None:
    content = 'email,note\n\na@example.com,"1\n2"\nb@example.com\n;\n\nc@example.com,"open\nd@example.com,4\n'
    file = read_csv(written(tmp_path, content))
    rows = list(file.rows())
    assert len(rows) == 5
    for index, row in enumerate(rows):
        assert list(file.rows(row.position)) == rows[index + 1 :]


def test_a_file_changed_after_it_was_looked_over_is_refused(tmp_path: Path) -> None:
    file = read_csv(written(tmp_path, _NAMES))
    written(tmp_path, _NAMES + "c@example.com,x\n")
    with pytest.raises(InvalidRecipients, match="changed"):
        list(file.rows())


_LONG = "email,name\n" + "".join(f"u{number}@example.com,old\n" for number in range(20_000))


@pytest.mark.parametrize("left", ["email,name\n", "email,name\n" + "x@example.com,new\n" * 30_000])
def test_of_a_file_rewritten_while_it_is_read_nothing_new_is_handed_over(tmp_path: Path, left: str) -> None:
    path = written(tmp_path, _LONG)
    rows = read_csv(path).rows()
    seen = [next(rows) for _ in range(150)]
    written(tmp_path, left)
    with pytest.raises(InvalidRecipients, match=r"list\.csv was changed while it was read\. Repeat"):
        seen.extend(rows)
    assert {row["name"] for row in values(seen)} == {"old"}


def test_a_file_whose_changed_bytes_show_nowhere_else_is_refused_before_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, _LONG)
    before = path.stat()
    rows = read_csv(path).rows()
    seen = [next(rows)]
    written(tmp_path, _LONG.replace("old", "new"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InvalidRecipients, match="changed"):
        seen.extend(rows)
    assert len(seen) < 20_001


def test_a_file_that_another_one_replaces_is_read_to_its_end(tmp_path: Path) -> None:
    rows = read_csv(written(tmp_path, _LONG)).rows()
    first = next(rows)
    other = tmp_path / "other.csv"
    other.write_text("email\n")
    other.replace(tmp_path / "list.csv")
    assert len(values([first, *rows])) == 20_000


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    first = read_csv(written(tmp_path, _NAMES)).digest
    assert first == read_csv(written(tmp_path, _NAMES)).digest
    assert first != read_csv(written(tmp_path, _NAMES + " ")).digest


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = written(tmp_path, "email,name\n" + "anna@example.com,Anna Blume\n" * rows)
        tracemalloc.start()
        try:
            for _ in read_csv(path).rows():
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40_000) < peak(20_000) * 1.1


def test_one_endless_line_is_not_read_into_memory(tmp_path: Path) -> None:
    path = written(tmp_path, "email,name\n" + "x" * 20_000_000)
    tracemalloc.start()
    try:
        rows = list(read_csv(path).rows())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(isinstance(row, BadRow) for row in rows)
    assert peak < 5_000_000


_VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@REPEATABLE
@given(
    st.lists(st.tuples(_VALUES, _VALUES), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[tuple[str, str]],
    delimiter: str,
    encoding: str,
    quoting: int,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerow(["first", "email", "second"])
    for number, (first, second) in enumerate(records):
        writer.writerow([first, f"u{number}@example.com", second])
    path = tmp_path_factory.getbasetemp() / f"round-trip-{os.getpid()}.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    found = values(list(read_csv(path).rows()))
    assert [(row["first"], row["second"]) for row in found] == [
        (first.strip(), second.strip()) for first, second in records
    ]


def test_the_mark_of_utf_16_is_told_from_binary(tmp_path: Path) -> None:
    content = codecs.BOM_UTF16_BE + _NAMES.encode("utf-16-be")
    assert [row["name"] for row in values(read(tmp_path, content))] == ["Zoë Müller", "Łódź"]
