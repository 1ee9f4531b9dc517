"""Addresses: what is accepted, what it becomes, and that the fast path is the library's answer."""

import string

import email_validator
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from campaigns.address import normalise
from campaigns.errors import InvalidAddress
from tests.unit.strategies import REPEATABLE

_LABELS = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=70)
_LOCALS = st.text(string.ascii_letters + string.digits + "._+-!#$%&'*/=?^`{|}~ \"@\\é", max_size=70)
_HOSTS = st.lists(st.text("ab1-", min_size=1, max_size=5), min_size=1, max_size=3).map(".".join)
_KNOWN = st.sampled_from(["de", "com", "INFO", "x--y", "xn--bcher-kva", "1", "example", ""])
_LIKE_ADDRESSES = st.builds(
    "{}@{}".format,
    _LOCALS | st.sampled_from(["Info", "POSTMASTER", "anna", "a.b"]),
    st.lists(_LABELS | _KNOWN, max_size=5).map(".".join) | _HOSTS,
)


@pytest.mark.parametrize(
    ("text", "email", "key"),
    [
        ("Anna@Example.COM", "Anna@example.com", "anna@example.com"),
        (" \ufeffanna@example.com\u200b\r\n", "anna@example.com", "anna@example.com"),
        ("Anna Ode <anna@example.com>", "anna@example.com", "anna@example.com"),
        ('"Ode, Anna" < anna@example.com >', "anna@example.com", "anna@example.com"),
        ("MailTo:anna@example.com?subject=hi", "anna@example.com", "anna@example.com"),
        ("anna@bücher.example", "anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example"),
        ("anna@BÜCHER.example", "anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example"),
        ("anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example", "anna@xn--bcher-kva.example"),
        ("INFO@example.com", "info@example.com", "info@example.com"),
    ],
)
def test_an_address_has_one_normal_form(text: str, email: str, key: str) -> None:
    address = normalise(text)
    assert (address.email, address.dedupe_key) == (email, key)
    assert address.domain == email.rpartition("@")[2]
    assert not address.needs_smtputf8


@pytest.mark.parametrize("domain", ["localhost", "a.localhost", "x.test", "b.a.invalid", "office.local"])
def test_reserved_domains_are_accepted_for_rehearsals(domain: str) -> None:
    assert normalise(f"anna@{domain.upper()}").email == f"anna@{domain}"


def test_only_a_foreign_local_part_needs_smtputf8() -> None:
    assert normalise("jörg@example.com").needs_smtputf8
    assert normalise("用户@例え.jp").email == "用户@xn--r8jz45g.jp"
    assert not normalise("joerg@例え.jp").needs_smtputf8


def test_addresses_that_only_look_alike_are_two_people() -> None:
    for one, other in (("straße", "strasse"), ("\u017fam", "sam"), ("\ufb01nn", "finn")):
        assert normalise(f"{one}@example.de").dedupe_key != normalise(f"{other}@example.de").dedupe_key


def test_composed_and_decomposed_letters_are_one_person() -> None:
    assert normalise("jo\u0308rg@example.com").dedupe_key == normalise("JÖRG@example.com").dedupe_key


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("anna", "@-sign"),
        ("anna@", "after the @-sign"),
        ("@example.com", "before the @-sign"),
        ("anna@example", "period"),
        ("anna@test", "period"),
        ("anna ode@example.com", "SPACE"),
        ("anna@exam ple.com", "SPACE"),
        ("anna@@example.com", "invalid characters"),
        ("anna@example..com", "two periods"),
        ("anna@-example.com", "hyphen"),
        ("a..b@example.com", "two periods"),
        ("anna@example.com, bert@example.com", "invalid characters"),
        ("anna@[127.0.0.1]", "bracketed"),
        ('"anna ode"@example.com', "Quoting"),
        ("an\u202ena@example.com", "RIGHT-TO-LEFT OVERRIDE"),
        ("anna\r\nBcc: eve@example.com", "invalid characters"),
        ("anna@example.com\r\nRCPT TO:<eve@example.com>", "invalid characters"),
        ("anna@example.com\u2028<eve@example.com>", "invalid characters"),
        ("an\0na@example.com", "invalid characters"),
        ("an\ud800na@example.com", "U+D800"),
        ("a" * 2000 + "@example.com", "too long"),
        ("a" * 250 + "@example.com", "too long"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        normalise(text)
    assert reason.lower() in caught.value.reason.lower()


def test_a_refused_domain_is_refused_the_second_time_too() -> None:
    reasons = []
    for local in ("a", "b"):
        with pytest.raises(InvalidAddress) as caught:
            normalise(f"{local}@refused")
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]


@REPEATABLE
@given(_LIKE_ADDRESSES)
@example("a@" + ".".join(["x" * 60] * 4) + ".de")
@example("a@a.b--c.de")
@example("a@ab--c.de")
@example("a@b.ab--c")
@example("a@a-.de")
@example("a@-a.de")
@example("a@a.de-")
@example("a@a.d1")
@example("a@a.onion")
@example("a@1.in-addr.arpa")
@example("a@" + "b" * 63 + ".de")
@example("a@" + "b" * 64 + ".de")
@example("a@" + "b." * 124 + "de")
@example("a@" + "b." * 125 + "de")
@example("a@" + "b." * 126 + "de")
@example("a@b.de\n")
@example("Support@xn--bcher-kva.de")
@example("a@xn--.de")
@example("a" * 100 + "@" + ("例" * 22 + ".").encode("idna").decode() * 3 + "de")
@example("a" * 200 + "@" + "b" * 50 + ".com")
def test_the_answer_is_always_the_librarys(text: str) -> None:
    if not text.isascii() or text != text.strip() or "<" in text or ">" in text:
        return
    try:
        expected = email_validator.validate_email(text, check_deliverability=False)
    except email_validator.EmailNotValidError:
        with pytest.raises(InvalidAddress):
            normalise(text)
    else:
        assert normalise(text).email == f"{expected.local_part}@{expected.ascii_domain}"


@REPEATABLE
@given(_LIKE_ADDRESSES)
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    try:
        address = normalise(text)
    except InvalidAddress:
        return
    assert normalise(address.email) == address
