"""Replies out of bytes, strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.reply import Fault
from workers.reply_reader import MOST_LINE_OCTETS, MOST_REPLY_OCTETS, RawReply, ReplyReader


def read(data: bytes, step: int = 1_000_000) -> list[RawReply | Fault]:
    """Everything that can be taken, fed `step` octets at a time."""
    reader = ReplyReader()
    taken: list[RawReply | Fault] = []
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        while (said := reader.take()) is not None:
            taken.append(said)
            if isinstance(said, Fault):
                return taken
    return taken


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"250 2.0.0 Ok\r\n", (250, "2.0.0 Ok")),
        (b"250\r\n", (250, "")),
        (b"250 \r\n", (250, "")),
        (b"250 Ok\n", (250, "Ok")),
        (b"250-one\r\n250-two\r\n250 three\r\n", (250, "one\ntwo\nthree")),
        (b"550-5.1.1 No\r\n550 5.1.1 such user\r\n", (550, "5.1.1 No\n5.1.1 such user")),
        (b"571 5.7.1 Blocked\r\n", (571, "5.7.1 Blocked")),
        ("450 Bo\u00eete pleine\r\n".encode(), (450, "Bo\u00eete pleine")),
        (b"450 \xff\r\n", (450, "\ufffd")),
        (b"250-\r\n250 \r\n", (250, "\n")),
    ],
)
def test_a_well_formed_reply_is_read(data: bytes, reply: tuple[int, str]) -> None:
    assert read(data) == [reply]
    assert read(data, step=1) == [reply]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"OK\r\n",
        b"25\r\n",
        b"2500 Ok\r\n",
        b"250x\r\n",
        b" 250 Ok\r\n",
        b"150 Ok\r\n",
        b"650 Ok\r\n",
        b"2_5 Ok\r\n",
        b"+25 Ok\r\n",
        b"250 Ok\rmore\r\n",
        b"250-Ok\r\n550 No\r\n",
        b"250-Ok\r\nOk\r\n",
        b"250-Ok\r\n\r\n",
        "\u0662\u0665\u0660 Ok\r\n".encode(),
        b"\xff\xfe\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_what_is_not_well_formed_is_garbage_and_stays_so(data: bytes) -> None:
    assert read(data)[-1] is Fault.GARBAGE
    reader = ReplyReader()
    reader.feed(data + b"250 Ok\r\n")
    assert reader.take() is Fault.GARBAGE and reader.take() is Fault.GARBAGE
    assert reader.has_bytes


@pytest.mark.parametrize("data", [b"2", b"250 Ok", b"250-Ok\r\n", b"250-Ok\r\n250", b"250-Ok\r\n250 Ok\r"])
def test_half_a_reply_is_none_but_is_noticed(data: bytes) -> None:
    reader = ReplyReader()
    assert not reader.has_bytes
    reader.feed(data)
    assert reader.take() is None and reader.has_bytes


@pytest.mark.parametrize(
    "data",
    [
        b"250 " + b"x" * MOST_LINE_OCTETS,
        b"250 " + b"x" * MOST_LINE_OCTETS + b"\r\n",
        b"250-" + b"x" * 1000 + b"\r\n" + b"250-y\r\n" * MOST_REPLY_OCTETS,
        b"250-" * 5 * MOST_REPLY_OCTETS,
    ],
)
def test_what_never_ends_is_oversized(data: bytes) -> None:
    assert read(data) == [Fault.OVERSIZED]
    assert read(data, step=100)[-1] is Fault.OVERSIZED


def test_a_line_of_the_full_length_is_read() -> None:
    text = "x" * (MOST_LINE_OCTETS - 5)
    assert read(f"250 {text}\r\n".encode()) == [(250, text)]


@given(
    replies=st.lists(
        st.tuples(
            st.integers(200, 599),
            st.lists(
                st.text(st.characters(blacklist_characters="\r\n", codec="utf-8")), min_size=1, max_size=4
            ),
        ),
        max_size=4,
    ),
    step=st.integers(1, 50),
)
def test_however_it_is_cut_the_same_replies_come_out(replies: list[tuple[int, list[str]]], step: int) -> None:
    data = b""
    for code, lines in replies:
        data += "".join(f"{code}-{line}\r\n" for line in lines[:-1]).encode()
        data += f"{code} {lines[-1]}\r\n".encode()
    assert read(data, step) == [(code, "\n".join(lines)) for code, lines in replies]


@given(data=st.binary(max_size=200), step=st.integers(1, 50))
def test_nothing_that_a_server_says_breaks_the_reader(data: bytes, step: int) -> None:
    for said in read(data, step):
        assert isinstance(said, Fault) or 200 <= said.code <= 599
