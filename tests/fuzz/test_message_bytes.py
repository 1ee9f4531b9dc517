"""Hostile names, subjects, templates and fields: a refusal, or one mail to one person, as it was meant."""

from __future__ import annotations

import asyncio
import email
import email.policy
import encodings.aliases
import re
import tracemalloc
from collections.abc import Iterator
from email.header import decode_header, make_header
from email.utils import getaddresses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from campaigns.address import normalise
from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.errors import InvalidAddress, MessageError, TemplateError
from campaigns.message import CampaignContent, RecipientContent, RenderedMessage, compile_campaign
from campaigns.reply import SmtpResult
from tests.fuzz.budget import fuzzed
from tests.integration.smtp.trial import PATIENT, Trial, configured
from workers.envelope import Envelope, normalised_body, stuffed_body
from workers.smtp import SmtpConnection

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NOW = 1_700_000_000.0
CHARSETS = sorted(
    {*encodings.aliases.aliases.values(), "idna", "punycode", "unicode_escape", "undefined", "x-no"}
)
WORDS = st.builds(
    "=?{}?{}?{}?=".format,
    st.sampled_from([*CHARSETS, "utf-8", "utf-8", "utf-8*en", "\u0131"]),
    st.sampled_from("qbQBx"),
    st.sampled_from(
        ["x=0D=0ABcc:=20e@x.example", "eA0KQmNjOiBldmU=", "=00", "=E2=80=A8", "=ED=A0=80", "a", "==="]
    )
    | st.text("=0123456789ABCDEFabcxyz+/_\\-", max_size=12),
)
HOSTILE = st.sampled_from(
    [
        *(
            "\r\nBcc: eve@example.com",
            "\nBcc: eve@example.com\n",
            "\rTo: eve@example.com",
            "\r\n\r\nbody",
            "\r\n ",
        ),
        *(
            "\n.\n",
            "\r\n.\r\n",
            ".",
            "..",
            "\r.\r",
            "\n.\r\nMAIL FROM:<e@x.example>\r\n",
            "From me",
            "\nFrom me",
        ),
        *(
            "\0",
            "\x0b",
            "\x1b[2J",
            "\x7f",
            "\x85",
            "\xad",
            "\u2028",
            "\u2029",
            "\u202e",
            "\u2066",
            "\ufeff",
            "\u200b",
        ),
        *("\ud800", "\udcff", "\U000e0001", "\U0010ffff", "e\u0301", "\u037e", "\u2024", "\uff20", "\ufe6b"),
        *("\t",),
        *(
            ">,<eve@example.com>",
            '"',
            "\\",
            '"\\',
            "<",
            ">",
            ",",
            ";",
            ":",
            "(",
            ")",
            "@",
            "eve@example.com,",
        ),
        *("--=_abc", "--=_abc--", "--=_abc--\r\n\r\nx", "=_abc", "=\r\n", "=3D", "Content-Type: text/x"),
        *(
            "<p>",
            "</p>",
            "<!--",
            "-->",
            "<script>",
            "&#13;&#10;",
            "&#0;",
            "&nbsp;",
            "<?xml version='1.0' encoding='x'?>",
        ),
    ]
) | st.builds(
    str.__mul__,
    st.sampled_from(["x", "é", "字", " ", "a b "]),
    st.sampled_from([80, 400, 997, 998, 999, 20_000]),
)
PLAIN = st.sampled_from(["Anna", "Grüße", "Łódź", "山田", "a", " ", "", "x y", "O'Neil", "100 %"])
TEXTS = st.lists(PLAIN | HOSTILE | WORDS | st.text(max_size=4), max_size=4).map("".join)
JINJA = st.sampled_from(
    [
        *(
            "{{ a }}",
            "{{ a | safe }}",
            "{{ b }}",
            "{{ email }}",
            "{{ fields['x y'] }}",
            "{{ a | upper }}",
            "{{",
        ),
        *(
            "{% if a %}",
            "{% endif %}",
            "{% for c in a %}{{ c }}{% endfor %}",
            "{#",
            "#}",
            "{% raw %}",
            "{{ a[0] }}",
        ),
        *(
            "{{ a | tojson }}",
            "{{ a ~ b }}",
            "{{ a * 3 }}",
            "{{ a | replace('x', b) }}",
            "{{ '\\r\\n' }}",
            "}}",
            "%}",
        ),
        *("{{ '\\ud800' }}", "{{ '\\x00' }}", "{{ a | urlencode }}", "{{ a % 2 }}", "{{ a | striptags }}"),
    ]
)
TEMPLATES = st.lists(PLAIN | HOSTILE | JINJA | JINJA | st.text(max_size=3), max_size=4).map("".join)
FIELDS = st.one_of(
    TEXTS, TEXTS, TEXTS, st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(),
    st.lists(TEXTS, max_size=2), st.dictionaries(PLAIN, TEXTS, max_size=2),
)  # fmt: skip
LOCAL_PARTS = st.sampled_from(
    ["anna", "jörg", "a.b", "a+b", "postmaster", "mailto:a", "a%b", "字", "ﬁ", "\u017f", "\u212b"]
)
DOMAINS = st.sampled_from(
    [
        "example.com",
        "EXAMPLE.com",
        "bücher.example",
        "xn--bcher-kva.example",
        "x.test",
        "localhost",
        "a.\u017f.example",
    ]
)
ADDRESSES = st.one_of(
    st.builds("{}@{}".format, LOCAL_PARTS, DOMAINS),
    st.builds("{}{}@{}{}".format, TEXTS, LOCAL_PARTS, DOMAINS, TEXTS),
    st.builds("{}<{}@{}>".format, TEXTS, LOCAL_PARTS, DOMAINS),
    st.emails(),
    TEXTS,
)
SENDERS = st.one_of(
    st.just("News <news@example.com>"),
    st.builds("{} <{}@{}>".format, TEXTS, LOCAL_PARTS, DOMAINS),
    st.builds('"{}" <{}@{}>'.format, TEXTS, LOCAL_PARTS, DOMAINS),
    ADDRESSES,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "X-Note",
            "List-Id",
            "X-Nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
            "x-note",
            "Bcc",
            "X-\r\nBcc",
        ]
    )
    | TEXTS,
    TEMPLATES,
    max_size=2,
)
LINKS = st.one_of(
    st.builds("https://x.example/{}".format, TEMPLATES),
    st.builds("<mailto:off@example.com?subject={}>, <https://x.example/{}>".format, TEMPLATES, TEMPLATES),
    TEMPLATES,
)
NEEDED = {"subject": st.just("Hi {{ a }}") | TEMPLATES, "sender": SENDERS | st.just("n@example.com")}
CONTENTS = st.fixed_dictionaries(
    NEEDED,
    optional={
        "html": TEMPLATES,
        "text": TEMPLATES,
        "reply_to": SENDERS,
        "headers": HEADERS,
        "list_unsubscribe": LINKS,
    },
)
RECIPIENTS = st.builds(
    RecipientContent,
    delivery_id=st.integers(1, 2**62),
    email=ADDRESSES | st.just("anna@example.com"),
    fields=st.fixed_dictionaries({}, optional={"a": FIELDS, "b": FIELDS, "x y": FIELDS}),
)


def content(**given_: Any) -> CampaignContent:
    given_ = given_ if {"html", "text"} & given_.keys() else {**given_, "text": "Hello {{ a }}"}
    return CampaignContent(**{"subject": "Hi", "sender": "News <news@example.com>", "token": "abc", **given_})


def recipient(**fields: object) -> RecipientContent:
    return RecipientContent(delivery_id=7, email="anna@example.com", fields=fields)


def rendered(campaign: CampaignContent, to: RecipientContent) -> RenderedMessage | None:
    """The mail, or None where it is refused as an attempt refuses it; anything else breaks an attempt."""
    try:
        return compile_campaign(campaign).render(to, NOW)
    except (MessageError, TemplateError) as error:
        refusal = str(error)
    assert refusal
    return None


def expected_names(campaign: CampaignContent) -> list[str]:
    names = ["From", "To", "Date", "Message-ID", "Subject"]
    names += ["Reply-To"] if campaign.reply_to else []
    names += ["List-Unsubscribe"] if campaign.list_unsubscribe else []
    names += [*campaign.headers, "MIME-Version", "Content-Type"]
    return names if campaign.html is not None else [*names, "Content-Transfer-Encoding"]


def assert_is_one_mail(message: RenderedMessage, campaign: CampaignContent, to: RecipientContent) -> None:
    assert_fit_for_the_wire(message)
    parsed = email.message_from_bytes(message.body, policy=email.policy.compat32)
    names = [name for name in parsed if name != "List-Unsubscribe-Post"]
    assert names == expected_names(campaign)
    assert raw_names(message.body) == parsed.keys()
    assert message.envelope_recipient == normalise(to.email).email
    for name, address in (("To", message.envelope_recipient), ("From", message.envelope_sender)):
        ((_, found),) = getaddresses([raw_value(message.body, name)])
        assert found == address
    for name, value in parsed.items():
        line = re.sub(r"\r\n[ \t]", " ", str(value))
        assert not CONTROL.search(line)
        if name != "List-Unsubscribe":  # its addresses stand as they are: no word in them is decoded
            assert not CONTROL.search(str(make_header(decode_header(line))))
    kinds = [part.get_content_type() for part in parsed.walk()]
    assert kinds in (["text/plain"], ["multipart/alternative", "text/plain", "text/html"])
    assert not [part.defects for part in parsed.walk() if part.defects]


def assert_fit_for_the_wire(message: RenderedMessage) -> None:
    """RFC 5321 2.3.8 and 4.5.2, RFC 5322 2.1.1: nothing bare, nothing long, nothing that ends the mail."""
    lines = message.body.split(b"\r\n")
    assert lines[-1] == b"" and max(map(len, lines)) <= 998
    assert not re.search(rb"[\r\n\0]", b"".join(lines))
    assert message.smtputf8 or message.body.isascii()
    assert normalised_body(message.body) == message.body
    assert b".\r\n" not in re.findall(rb"^[^\n]*\n", stuffed_body(message.body), re.MULTILINE)
    envelope = Envelope(
        sender=message.envelope_sender, recipient=message.envelope_recipient, smtputf8=message.smtputf8
    )
    assert envelope.mistake is None


def raw_names(body: bytes) -> list[str]:
    """The names of the fields, by nothing but RFC 5322 2.2.3."""
    block = body.partition(b"\r\n\r\n")[0]
    return [line.partition(b":")[0].decode() for line in re.split(rb"\r\n(?![ \t])", block)]


def raw_value(body: bytes, name: str) -> str:
    block = body.partition(b"\r\n\r\n")[0]
    (field,) = re.findall(rb"(?:^|\r\n)%b:((?:[^\r]|\r\n[ \t])*)" % name.encode(), block)
    return re.sub(r"\r\n[ \t]+", " ", bytes(field).decode())


@fuzzed(200)
@given(given_=CONTENTS, to=RECIPIENTS)
@example(given_={"list_unsubscribe": "https://x.example/" + "a" * 970}, to=recipient(a=""))
@example(
    given_={"list_unsubscribe": "<mailto:a@x.example>, <https://x.example/" + "a" * 965 + ">"},
    to=recipient(a=""),
)
@example(given_={"html": "{{ a | safe }}{{ a }}"}, to=recipient(a="\ud800"))
@example(given_={"html": "{{ a | safe }}{{ a }}"}, to=recipient(a="<?xml version='1.0' encoding='x'?><p>"))
@example(given_={"html": "{{ a | safe }}{{ a }}"}, to=recipient(a="<!-- "))
@example(given_={"html": "<?xml version='1.0' encoding='utf-8'?><p>Hi"}, to=recipient(a=""))
@example(given_={"html": "\ud800"}, to=recipient(a=""))
@example(given_={"html": "\0"}, to=recipient(a=""))
@example(given_={"html": ""}, to=recipient(a=""))
@example(given_={"subject": "{{ a }}"}, to=recipient(a=10**400))
@example(given_={"text": "{{ a | tojson }}"}, to=recipient(a=float("nan")))
@example(given_={"text": "{{ '\\ud800' }}"}, to=recipient())
@example(given_={"subject": "=?unicode_escape?q?=5Cq=5Cn?="}, to=recipient(a=""))
@example(given_={"subject": "=?punycode?q?99999999999?="}, to=recipient(a=""))
@example(given_={"subject": "{{ a }}"}, to=recipient(a="=?utf-7?q?+AA0ACg-Bcc:?="))
def test_whatever_is_given_it_is_refused_or_one_mail_to_one_person(
    given_: dict[str, Any], to: RecipientContent
) -> None:
    campaign = content(**given_)
    message = rendered(campaign, to)
    event("refused" if message is None else "a mail")
    if message is not None:
        assert_is_one_mail(message, campaign, to)


@fuzzed(150)
@given(a=FIELDS, b=FIELDS, to=ADDRESSES | st.just("anna@example.com"))
@example(a="x\u2028y", b="", to="anna@example.com")
@example(a="x\x0by", b="", to="anna@example.com")
def test_fields_of_a_list_never_make_anything_but_the_mail_that_was_meant(
    a: object, b: object, to: str
) -> None:
    campaign = content(
        subject="Hi {{ a }}",
        html="<h1>{{ a }}</h1>{% if b %}<p>{{ b | safe }}</p>{% endif %}",
        headers={"X-Note": "{{ b }}"},
        list_unsubscribe="<https://x.example/?e={{ email | urlencode }}&a={{ a }}>",
    )
    person = RecipientContent(delivery_id=1, email=to, fields={"a": a, "b": b})
    message = rendered(campaign, person)
    event("refused" if message is None else "a mail")
    if message is not None:
        assert_is_one_mail(message, campaign, person)


@fuzzed(150)
@given(word=WORDS, before=PLAIN, after=PLAIN | WORDS)
@example(word="=?unicode_escape?q?\\8?=", before="", after="")
def test_an_encoded_word_of_any_charset_is_refused_or_shown_as_it_stands(
    word: str, before: str, after: str
) -> None:
    value = f"{before}{word}{after}"
    message = rendered(content(subject="{{ a }}"), recipient(a=value))
    if message is not None:
        parsed = email.message_from_bytes(message.body, policy=email.policy.default)
        assert str(parsed["Subject"]) == value.strip(" ")


@pytest.mark.parametrize(
    "other", ["=?x-no?q?a?=", "=?utf-8?b?a?=", "=?hex?q?a?=", "=?undefined?q?a?=", "=?utf-8?q??="]
)
def test_a_word_that_nobody_can_read_hides_none_beside_it(other: str) -> None:
    for value in (
        f"{other} =?utf-8?q?x=0D=0ABcc:?=",
        f"=?utf-8?b?eA0KQmNj?= {other}",
        f"{other}=?utf-8?q?=00?=",
    ):
        assert rendered(content(subject="{{ a }}"), recipient(a=value)) is None


@fuzzed(150)
@given(text=ADDRESSES)
@example(text="mailto:mailto:a@example.com")
@example(text="a@example.com?subject=x")
@example(text="mailto:a@example.com?subject=x")
@example(text="<<a@example.com>>")
@example(text="\u200ba@example.com\ufeff")
@example(text="a@localhost")
@example(text="=?utf-8?q?eve=40x.example=3e?=anna@example.com")
@example(text="=?utf-8?q?Anna?= <anna@example.com>")
@example(text="a@x.localhost")
def test_an_address_is_refused_or_is_the_same_when_it_is_read_again(text: str) -> None:
    """It is normalised when a list is read, and again when its mail is made: both must mean one person."""
    try:
        address = normalise(text)
    except InvalidAddress as error:
        address, reason = None, error.reason
        assert reason
    if address is None:
        return
    assert normalise(address.email) == address
    assert not re.search(r"=\?.*\?=", address.email)
    assert normalise(address.dedupe_key).dedupe_key == address.dedupe_key
    assert address.email.count("@") == 1 and address.email.endswith(f"@{address.domain}")
    assert address.domain.isascii() and address.email.isascii() != address.needs_smtputf8
    mistake = Envelope(sender="", recipient=address.email, smtputf8=address.needs_smtputf8).mistake
    assert mistake is None


@pytest.mark.parametrize(
    ("part", "template"),
    [
        *(
            ("subject", "{{ a }}"),
            ("subject", "{% for c in a %}{{ c }}{% endfor %}"),
            ("text", "{{ a | upper }}"),
        ),
        *(("text", "{{ a[:9] }}"), ("html", "{{ a }}"), ("html", "{{ a * 2 }}"), ("html", "{{ a ~ a }}")),
        *(("list_unsubscribe", "https://x.example/{{ a }}"), ("html", "{{ a | striptags }}")),
    ],
)
def test_a_field_of_50_megabytes_costs_no_more_than_itself(part: str, template: str) -> None:
    compiled = compile_campaign(content(**{"text": "Hello", part: template}))
    field = "x" * 50_000_000
    tracemalloc.start()
    try:
        with pytest.raises((MessageError, TemplateError)) as caught:
            compiled.render(recipient(a=field), NOW)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000 and len(str(caught.value)) < 500


def test_a_field_of_50_megabytes_that_no_template_uses_is_no_part_of_the_mail() -> None:
    message = compile_campaign(content()).render(recipient(a="", b="x" * 50_000_000), NOW)
    assert len(message.body) < 1_000


Receiver = tuple[asyncio.AbstractEventLoop, ScriptedSmtpServer]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A server that keeps what it takes, on a loop that runs while mails are sent to it."""
    loop = asyncio.new_event_loop()
    server = ScriptedSmtpServer(tmp_path / "accepted.jsonl", keeps_data=True)
    loop.run_until_complete(server.start())
    yield loop, server
    loop.run_until_complete(server.stop())
    loop.close()


async def sent(server: ScriptedSmtpServer, message: RenderedMessage) -> list[SmtpResult]:
    """How the mail, and a plain one behind it on the same connection, ended."""
    connection = await SmtpConnection.open(configured(server), PATIENT, "client.example.com")
    try:
        mail = Trial(
            sender=message.envelope_sender,
            recipient=message.envelope_recipient,
            smtputf8=message.smtputf8,
            body=message.body,
        )
        return [await mail.over(connection), await Trial().over(connection)]
    finally:
        connection.abort()


BODIES = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())


@fuzzed(60)
@given(
    text=BODIES,
    html=st.none() | BODIES,
    subject=PLAIN,
    to=st.builds("{}@{}".format, st.sampled_from(["anna", "jörg", "a.b+c", "字"]), DOMAINS),
)
@example(text=".\n..\n.\r\nMAIL FROM:<e@x.example>\r\n.\r\n", html=None, subject="", to="anna@example.com")
@example(text="a", html="\r.\r", subject="", to="anna@example.com")
@example(text="." * 2000, html=".\n" * 50, subject="", to="anna@example.com")
def test_what_a_server_receives_is_that_mail_alone(
    receiver: Receiver, text: str, html: str | None, subject: str, to: str
) -> None:
    loop, server = receiver
    bodies = {"text": "{{ a }}"} if html is None else {"text": "{{ a }}", "html": "{{ b | safe }}"}
    campaign = content(subject="Hi {{ c }}", **bodies)
    person = RecipientContent(delivery_id=1, email=to, fields={"a": text, "b": html, "c": subject})
    message = rendered(campaign, person)
    event("refused" if message is None else "a mail")
    if message is None:
        return
    assert_is_one_mail(message, campaign, person)
    before = len(server.records())
    results = loop.run_until_complete(sent(server, message))
    assert [result.ok for result in results] == [True, True]
    mail, plain = server.records()[before:]
    assert (mail.sender, mail.recipient) == (message.envelope_sender, message.envelope_recipient)
    assert mail.data is not None and mail.data.encode("latin-1") == message.body
    assert (plain.sender, plain.recipient) == ("news@example.com", "bob@example.net")
