"""Bodies and addresses as they go over the wire."""

import re

from hypothesis import given
from hypothesis import strategies as st

from workers.envelope import Envelope, normalised_body, stuffed_body

LINES = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"..", b"a", b"\xff"]), max_size=12).map(
    b"".join
)


@given(body=LINES)
def test_a_normalised_body_has_no_bare_line_ends_and_the_same_lines(body: bytes) -> None:
    normal = normalised_body(body)
    assert normal.endswith(b"\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", normal)
    lines = re.split(rb"\r\n|\r|\n", body)
    assert normal.split(b"\r\n")[:-1] == (lines[:-1] if len(lines) > 1 and not lines[-1] else lines)
    assert normalised_body(normal) == normal


@given(body=LINES)
def test_a_stuffed_body_never_ends_early_and_comes_out_the_same(body: bytes) -> None:
    normal = normalised_body(body)
    stuffed = stuffed_body(normal)
    lines = stuffed.split(b"\r\n")
    assert b"." not in lines
    assert b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines) == normal


@given(address=st.text(max_size=30), smtputf8=st.booleans())
def test_no_address_makes_two_commands_of_one(address: str, smtputf8: bool) -> None:
    envelope = Envelope(sender=address, recipient="bob@example.net", smtputf8=smtputf8)
    if envelope.mistake is None:
        command = envelope.mail_command(" SIZE=1")
        assert command.count(b"\n") == command.count(b"\r") == command.count(b">") == 1
        assert command.endswith(b"> SIZE=1\r\n") and b"\0" not in command


def test_a_mistake_never_quotes_the_address() -> None:
    mistake = Envelope(sender="secret\r@example.com", recipient="bob@example.net").mistake
    assert mistake is not None and "secret" not in mistake
