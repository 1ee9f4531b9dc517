"""Messages: what goes out is parsed again by the email package, and is what was meant."""

import email
import email.policy
import re
import unicodedata
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from campaigns.errors import CampaignsError, MessageError, TemplateError
from campaigns.message import (
    CampaignContent,
    RecipientContent,
    RenderedMessage,
    compile_campaign,
    validate_content,
)
from tests.unit.strategies import REPEATABLE

NOW = 1_700_000_000.0
BREAKING = [*"\r\n\0\x0b\x0c\x1b\x7f\x85\u2028\u2029\t", "\ud800", "\r\n", "\n "]
HIDDEN = [
    "=?utf-8?q?x=0D=0ABcc=3A_eve=40example=2Ecom?=",
    "=?utf-8?b?eA0KQmNjOiBldmVAZXhhbXBsZS5jb20=?=",
    "=?iso-8859-1?q?x=0a?=",
    "=?utf-8?q?=E2=80=A8?=",
    "a =?utf-8?q?x=00?= b",
]
TEXTS = st.text(st.characters(codec="utf-8"), max_size=200)
LINES = st.lists(
    st.sampled_from(
        [".", "..", ".\r", "From me", "a b ", "\t", "x" * 998, "x" * 999, "é" * 400, "=_abc", "--=_abc"]
    )
    | TEXTS,
    max_size=8,
).map("\n".join)


def content(**given_: Any) -> CampaignContent:
    return CampaignContent(
        **{"subject": "Hi", "sender": "News <news@example.com>", "token": "abc", "text": "Hello", **given_}
    )


def rendered(
    campaign: CampaignContent, address: str = "anna@example.com", delivery_id: int = 7, **fields: object
) -> RenderedMessage:
    recipient = RecipientContent(delivery_id=delivery_id, email=address, fields=fields)
    return compile_campaign(campaign).render(recipient, NOW)


def parsed(message: RenderedMessage) -> EmailMessage:
    assert_travels(message)
    return reparsed(message.body)


def reparsed(body: bytes) -> EmailMessage:
    found = email.message_from_bytes(body, policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    assert not [part.defects for part in found.walk() if part.defects]
    return found


def assert_travels(message: RenderedMessage) -> None:
    """RFC 5322 2.1.1 and 2.3: CRLF, nothing bare, short lines, and 7 bits where no SMTPUTF8 is asked for."""
    lines = message.body.split(b"\r\n")
    assert lines[-1] == b""
    assert all(
        len(line) <= 998 and b"\r" not in line and b"\n" not in line and b"\0" not in line for line in lines
    )
    assert message.smtputf8 or message.body.isascii()


def body_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def test_a_mail_has_the_fields_that_it_needs_and_no_other() -> None:
    message = parsed(rendered(content(html="<p>Hello")))
    assert message.keys() == ["From", "To", "Date", "Message-ID", "Subject", "MIME-Version", "Content-Type"]
    assert message["From"] == "News <news@example.com>"
    assert message["To"] == "anna@example.com"
    assert message["Message-ID"] == "<abc.7@example.com>"
    assert parsedate_to_datetime(message["Date"]).timestamp() == NOW
    assert message["MIME-Version"] == "1.0"


def test_the_best_form_comes_last() -> None:
    message = parsed(rendered(content(text="Plain {{ a }}", html="<p>Rich {{ a }}"), a="<&>"))
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert body_of(message, "plain").strip() == "Plain <&>"
    assert body_of(message, "html").strip() == "<p>Rich &lt;&amp;&gt;"


def test_text_alone_is_one_part() -> None:
    message = parsed(rendered(content(text="Grüße an {{ a }}"), a="Łódź"))
    assert message.get_content_type() == "text/plain"
    assert message.get_content().rstrip() == "Grüße an Łódź"


def test_a_text_part_is_made_from_the_html_without_its_escapes() -> None:
    html = "<style>p {}</style><h1>Hi {{ a }}</h1><p>See <a href='https://x.example/{{ b }}'>this</a></p>"
    message = parsed(rendered(content(text=None, html=html), a="Tom & <b>", b="y"))
    assert body_of(message, "plain").split() == [
        "Hi",
        "Tom",
        "&",
        "<b>",
        "See",
        "[this](https://x.example/y)",
    ]
    assert "Tom &amp; &lt;b&gt;" in body_of(message, "html")


def test_every_attempt_of_a_delivery_has_the_same_message_id_and_others_another() -> None:
    compiled = compile_campaign(content())

    def message_id(delivery_id: int, now: float) -> str:
        recipient = RecipientContent(delivery_id=delivery_id, email="a@example.com", fields={})
        return str(reparsed(compiled.render(recipient, now).body)["Message-ID"])

    assert message_id(1, NOW) == message_id(1, NOW + 99)
    assert message_id(1, NOW) != message_id(2, NOW)


@pytest.mark.parametrize("value", BREAKING + HIDDEN)
def test_a_field_that_would_break_out_of_a_header_is_refused(value: str) -> None:
    for template in ("{{ a }}", "{{ a }} b", "b {{ a }} b"):
        for campaign in (
            content(subject=f"x{template}"),
            content(headers={"X-Note": f"x{template}"}),
            content(list_unsubscribe=f"https://x.example/x{template}"),
        ):
            with pytest.raises(MessageError) as caught:
                rendered(campaign, a=f"y{value}z")
            assert "header" in str(caught.value)
            assert "eve" not in str(caught.value)


@pytest.mark.parametrize("value", BREAKING + HIDDEN)
def test_a_campaign_whose_own_header_would_break_is_refused_at_once(value: str) -> None:
    for broken in (
        content(subject=f"x{value}y"),
        content(sender=f"x{value}y <a@example.com>"),
        content(sender=f"a@example.com{value}y"),
        content(reply_to=f"x{value}y <a@example.com>"),
        content(headers={"X-Note": f"x{value}y"}),
        content(headers={f"X-{value}": "y"}),
        content(list_unsubscribe=f"https://x.example/{value}y"),
        content(token=f"a{value}b"),
    ):
        with pytest.raises(MessageError):
            compile_campaign(broken)


@pytest.mark.parametrize(
    "address", ["a\r\nBcc: eve@example.com", "a@example.com\nx", "a@x.example>,<b@x.example", ""]
)
def test_a_recipient_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(MessageError):
        rendered(content(), address)


@REPEATABLE
@given(TEXTS | st.text("=?utf8-bqQB_ aA\r\n:é", max_size=90))
@example("=?utf-8?q?hidden?=")
@example("=?utf-8?b?")
@example("x" * 2000)
@example("word " * 300)
@example("é" * 300)
@example("a" + " " * 200 + "b")
@example("Bcc: eve@example.com")
def test_a_subject_arrives_as_it_is_or_is_refused(value: str) -> None:
    campaign = content(subject="{{ a }}", headers={"X-Note": "{{ a }}"}, reply_to="r@example.com")
    try:
        message = parsed(rendered(campaign, a=value))
    except MessageError:
        assert re.search("[\0-\x1f\x7f-\x9f\u2028\u2029]", value) or "=?" in value or len(value) > 10_000
        return
    names = ["From", "To", "Date", "Message-ID", "Subject", "Reply-To", "X-Note", "MIME-Version"]
    assert message.keys() == [*names, "Content-Type", "Content-Transfer-Encoding"]
    assert str(message["Subject"]) == value.strip(" ")
    assert str(message["X-Note"]) == value.strip(" ")


def test_an_encoded_word_in_a_field_is_shown_and_not_decoded() -> None:
    message = parsed(rendered(content(subject="{{ a }}"), a="=?utf-8?q?harmless?="))
    assert message["Subject"] == "=?utf-8?q?harmless?="


@REPEATABLE
@given(LINES, LINES)
@example(".", ".")
@example("a\n.\n..\nb", "a\r\r\nb")
@example("--=_abc\n\n--=_abc--", "--=_abc--")
@example("\0\x01\x7f", "\x1b[0m")
@example("x" * 5000, "é" * 5000)
@example("a  \n\tb\t\n ", "")
def test_a_body_arrives_as_it_is(text: str, html: str) -> None:
    campaign = content(text="{{ a }}", html="{{ b | safe }}", token="abc")
    message = parsed(rendered(campaign, a=text, b=html))
    for kind, sent in (("plain", text), ("html", html)):
        part = message.get_body((kind,))
        assert part is not None
        octets = part.get_payload(decode=True)
        assert isinstance(octets, bytes)
        assert octets.decode() == re.sub("\r\n|\r|\n", "\r\n", sent)


def test_no_other_character_becomes_a_breaking_one_by_normalisation() -> None:
    breaking = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
    for code in range(0x110000):
        character = chr(code)
        if not breaking.match(character) and not 0xD800 <= code < 0xE000:
            assert not breaking.search(unicodedata.normalize("NFKC", character))


@pytest.mark.parametrize(
    "injected", [b"X: a\r\nBcc: b\r\n", b"X: a\nBcc: b\r\n", b"X: a\rBcc: b\r\n", b"\r\nX: a\r\n"]
)
def test_a_header_with_a_field_that_nobody_asked_for_is_refused_whatever_made_it(injected: bytes) -> None:
    compiled = compile_campaign(content())
    recipient = RecipientContent(delivery_id=1, email="a@example.com", fields={})
    compiled._slots.insert(3, ((b"X",), injected))
    with pytest.raises(MessageError, match="nobody asked for"):
        compiled.render(recipient, NOW)


def test_plain_ascii_is_sent_as_it_is() -> None:
    assert b"Content-Transfer-Encoding: 7bit\r\n\r\nHello\r\n" in rendered(content()).body


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("Grüße und was man sonst so schreibt", "quoted-printable"),
        ("Привет, как дела?", "base64"),
        ("a \nb", "quoted-printable"),
        ("a\nFrom b", "quoted-printable"),
        ("a\n.\nb", "quoted-printable"),
        ("a\0b", "quoted-printable"),
    ],
)
def test_the_encoding_suits_the_text(text: str, encoding: str) -> None:
    message = parsed(rendered(content(text="{{ a }}"), a=text))
    assert message["Content-Transfer-Encoding"] == encoding


@pytest.mark.parametrize("token", ["abc", "0" * 100])
def test_a_part_that_holds_the_boundary_does_not_end_there(token: str) -> None:
    boundary = f"--=_{token[:40]}--\r\nX"
    message = parsed(rendered(content(text="{{ a }}", html="<p>{{ a }}", token=token), a=boundary))
    assert body_of(message, "plain").splitlines() == boundary.splitlines()


@pytest.mark.parametrize(
    ("sender", "name"),
    [
        ("News <news@example.com>", "News"),
        ("news@example.com", ""),
        ('"News, Inc." <news@example.com>', "News, Inc."),
        ("News, Inc. <news@example.com>", "News, Inc."),
        ('"A \\"b\\" \\\\c" <news@example.com>', 'A "b" \\c'),
        ("Müller & Söhne <news@example.com>", "Müller & Söhne"),
        ("山田太郎" * 20 + " <news@example.com>", "山田太郎" * 20),
        ("N" * 300 + " <news@example.com>", "N" * 300),
        ("=?utf-8?q?News?= <news@example.com>", "=?utf-8?q?News?="),
        ('"<eve@example.com>" <news@example.com>', "<eve@example.com>"),
        ("news@example.org <news@example.com>", "news@example.org"),
    ],
)
def test_a_display_name_arrives_as_it_is(sender: str, name: str) -> None:
    message = email.message_from_bytes(rendered(content(sender=sender, reply_to=sender)).body)
    for field in ("From", "Reply-To"):
        # Not by policy.default: Python 3.11's leaves blanks between the encoded words of a phrase.
        display_name, address = parseaddr(message[field])
        assert (str(make_header(decode_header(display_name))) or "", address) == (name, "news@example.com")


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "News",
        "News <news>",
        "a@example.com, b@example.com",
        "<a@b.de> <c@d.de>",
        "a <b <c@d.de>",
        "n" * 400 + " <a@b.de>",
    ],
)
def test_a_sender_without_one_usable_address_is_refused(sender: str) -> None:
    with pytest.raises(MessageError, match="From"):
        compile_campaign(content(sender=sender))


def test_foreign_domains_are_sent_as_a_labels() -> None:
    message = rendered(content(sender="news@bücher.example"), "anna@例え.example")
    assert message.envelope_sender == "news@xn--bcher-kva.example"
    assert message.envelope_recipient == "anna@xn--r8jz45g.example"
    assert not message.smtputf8
    assert parsed(message)["Message-ID"] == "<abc.7@xn--bcher-kva.example>"


def test_a_foreign_local_part_asks_for_smtputf8_and_stands_in_utf_8() -> None:
    message = rendered(content(), "jörg@bücher.example")
    assert message.smtputf8
    assert "\r\nTo: jörg@xn--bcher-kva.example\r\n".encode() in message.body
    assert rendered(content(sender="jörg@example.com")).smtputf8
    assert rendered(content(reply_to="Jörg <jörg@example.com>")).smtputf8
    assert not rendered(content(reply_to="Jörg <joerg@example.com>")).smtputf8


@pytest.mark.parametrize(
    "name", ["X-Note", "List-Id", "Precedence", "Auto-Submitted", "Feedback-ID", "Organization"]
)
def test_allowed_headers_are_set_and_may_have_merge_fields(name: str) -> None:
    message = parsed(rendered(content(headers={name: "for {{ a }}"}), a="Zoë"))
    assert message[name] == "for Zoë"


@pytest.mark.parametrize(
    "name",
    [
        *("Bcc", "Cc", "To", "From", "Sender", "Subject", "Date", "Message-ID", "Received", "Return-Path"),
        *("DKIM-Signature", "ARC-Seal", "Authentication-Results", "Content-Type", "MIME-Version", "Reply-To"),
        *(
            "List-Unsubscribe",
            "List-Unsubscribe-Post",
            "Resent-To",
            "Disposition-Notification-To",
            "Errors-To",
        ),
        *("", "X", "X-a b", "X-a:", "X-é", "bcc ", "X-" + "a" * 90),
    ],
)
def test_no_other_header_can_be_set(name: str) -> None:
    with pytest.raises(MessageError, match="cannot be set"):
        compile_campaign(content(headers={name: "x"}))


def test_a_header_is_given_once() -> None:
    with pytest.raises(MessageError, match="twice"):
        compile_campaign(content(headers={"X-Note": "a", "x-note": "b"}))


@pytest.mark.parametrize(
    ("given_", "sent", "one_click"),
    [
        ("https://x.example/?e={{ email | urlencode }}", "<https://x.example/?e=anna%40example.com>", True),
        ("http://x.example/", "<http://x.example/>", False),
        ("mailto:off@example.com?subject=off", "<mailto:off@example.com?subject=off>", False),
        ("off@example.com", "<mailto:off@example.com>", False),
        ("<mailto:a@x.example>, <https://x.example/a>", "<mailto:a@x.example>, <https://x.example/a>", True),
        ("https://x.example/é", "<https://x.example/%C3%A9>", True),
        ("https://x.example/" + "a" * 300, "<https://x.example/" + "a" * 300 + ">", True),
    ],
)
def test_unsubscribing_is_offered_and_with_one_click_over_https_alone(
    given_: str, sent: str, one_click: bool
) -> None:
    message = parsed(rendered(content(list_unsubscribe=given_)))
    assert message["List-Unsubscribe"].replace("\r\n", "") == sent
    assert message["List-Unsubscribe-Post"] == ("List-Unsubscribe=One-Click" if one_click else None)


@pytest.mark.parametrize("given_", ["javascript:x", "https://", "x", "<>", "https://a b", "ftp://x.example"])
def test_an_unsubscribing_that_cannot_work_is_refused(given_: str) -> None:
    with pytest.raises(MessageError, match="List-Unsubscribe"):
        compile_campaign(content(list_unsubscribe=given_))


def test_a_field_cannot_add_an_address_to_unsubscribing() -> None:
    message = parsed(
        rendered(content(list_unsubscribe="https://x.example/{{ a }}"), a=">,<https://eve.example")
    )
    assert message["List-Unsubscribe"].count("<") == 1


def test_a_campaign_without_a_body_is_refused() -> None:
    with pytest.raises(MessageError, match="neither"):
        compile_campaign(content(text=None))


def test_missing_fields_are_found_in_every_template_before_anything_is_sent() -> None:
    campaign = content(
        subject="{{ a }}", text="{{ b }}", html="{{ c }}", headers={"X-Note": "{{ d }}"},
        list_unsubscribe="https://x.example/{{ f }}", defaults={"f": ""},
    )  # fmt: skip
    compiled = compile_campaign(campaign)
    assert compiled.variables == {"a", "b", "c", "d", "f"}
    assert compiled.missing(["email", "A"], ["b"]) == ["c", "d"]
    with pytest.raises(TemplateError, match="`d`"):
        validate_content(campaign, ["email", "a", "b", "c"])
    validate_content(campaign, ["email", "a", "b", "c", "d"])


def test_a_field_that_one_recipient_lacks_fails_that_recipient_alone() -> None:
    compiled = compile_campaign(content(text="{{ a }}"))
    with pytest.raises(TemplateError, match="'a' is undefined"):
        compiled.render(RecipientContent(delivery_id=1, email="a@example.com", fields={}), NOW)
    assert compiled.render(RecipientContent(delivery_id=2, email="b@example.com", fields={"a": "x"}), NOW)


@pytest.mark.parametrize("part", ["subject", "text", "html"])
def test_a_mistake_in_a_template_names_the_part(part: str) -> None:
    with pytest.raises(TemplateError, match=f"The {part} template, line 1"):
        compile_campaign(content(**{part: "{% if %}"}))


def test_a_lone_surrogate_in_a_body_is_refused() -> None:
    with pytest.raises(MessageError, match="surrogate"):
        rendered(content(text="{{ a }}"), a="\ud800")


@REPEATABLE
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60))
def test_a_field_never_makes_anything_but_a_mail_or_a_clear_refusal(address: str, value: str) -> None:
    campaign = content(subject="{{ a }}", html="<p>{{ a }}", headers={"X-Note": "{{ a }}"})
    try:
        message = rendered(campaign, address if "@" in address else "anna@example.com", a=value)
    except CampaignsError:
        return
    assert len(parsed(message).keys()) == 8
