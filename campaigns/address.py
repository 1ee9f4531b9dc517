"""Addresses as they are stored and sent: checked, normalised, with the key that finds duplicates."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, ValidatedEmail, validate_email
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES, EMAIL_MAX_LENGTH

from campaigns.errors import InvalidAddress

__all__ = ["Address", "normalise"]

# RFC 5322 3.2.3 dot-atom before the @, a host name of ASCII letters, digits and hyphens after it.
_ATOM = r"[A-Za-z0-9_!#$%&'*+\-/=?^`{|}~]+"
_PLAIN = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@([A-Za-z0-9.\-]+)")
# RFC 1123 2.1, less what the library sends on to further checks: reserved names, labels like `ab--c`.
_LABEL = r"(?!..--)[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+{_LABEL}(?<=[a-z])")
_RESERVED = frozenset(name.rpartition(".")[2] for name in SPECIAL_USE_DOMAIN_NAMES)
# A name is one line: what spans several was made to look like something else.
_ANGLE = re.compile(r"[^<>\0\r\n\v\f\x85\u2028\u2029]*<([^<>]*)>")
# RFC 2047 5 keeps them out of addresses; mailers that decode them all the same send to somebody else.
_ENCODED_WORD = re.compile(r"=\?.*\?=")
_EDGES = " \t\r\n\v\f\x85\xa0\u200b\u200e\u200f\u2028\u2029\u2060\ufeff"
_LONGEST_INPUT = 1000
_CASELESS = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)
# Reserved by RFC 6761 and RFC 6762 and refused by the library. Rehearsals and intranets use them. The
# stand-in has the same length and is not reserved, so that every other rule is still checked.
_STAND_INS = {"test": "tesx", "invalid": "invalix", "local": "locax", "localhost": "localhosx"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """An address in its normal form.

    `email` is what goes into the envelope and the ledger: the local part in NFC, the domain in lower-case
    A-labels (RFC 5890). `dedupe_key` also folds the case of the local part: RFC 5321 2.4 lets a server tell
    `Anna` from `anna`, but none does, and a list that holds both means one person. `needs_smtputf8` says
    that the local part is not ASCII (RFC 6531).
    """

    email: str
    dedupe_key: str
    domain: str
    needs_smtputf8: bool


def normalise(text: str) -> Address:
    """Check and normalise one address; `Name <addr>`, `mailto:` and surrounding blanks are taken off.

    No DNS is asked. Raises InvalidAddress with the reason, which never quotes the whole address.
    """
    bare = _bare(text)
    plain = _PLAIN.fullmatch(bare)
    if plain is not None and len(bare) <= EMAIL_MAX_LENGTH and "xn--" not in bare.lower():
        return _plain(plain[1], plain[2])
    return _checked(bare)


def _bare(text: str) -> str:
    bare = text.strip(_EDGES)
    if not bare:
        raise InvalidAddress("The address is empty.")
    if len(bare) > _LONGEST_INPUT:
        raise InvalidAddress(f"The address is too long: {len(bare)} characters.")
    angle = _ANGLE.fullmatch(bare)
    if angle is not None:
        bare = angle[1].strip(_EDGES)
    if bare[:7].lower() == "mailto:":
        bare = bare[7:].partition("?")[0]
    if _ENCODED_WORD.search(bare):
        raise InvalidAddress("The address holds an encoded word, which some servers read as another address.")
    return bare


def _plain(local: str, domain: str) -> Address:
    ascii_domain = _ascii_domain(domain.lower())
    if isinstance(ascii_domain, InvalidAddress):
        raise InvalidAddress(ascii_domain.reason)
    if local.lower() in _CASELESS:
        local = local.lower()
    return _address(local, ascii_domain, needs_smtputf8=False)


@lru_cache(maxsize=16384)
def _ascii_domain(domain: str) -> str | InvalidAddress:
    """Return the domain as the library normalises it, or (so that refusals are cached too) its refusal."""
    if _HOST.fullmatch(domain) and domain.rpartition(".")[2] not in _RESERVED:
        return domain
    try:
        return _checked(f"a@{domain}").domain
    except InvalidAddress as invalid:
        return invalid


def _checked(bare: str) -> Address:
    local, at, domain = bare.rpartition("@")
    head, dot, last = domain.rpartition(".")
    label = last.lower()
    if label == "localhost" and not dot:
        return _accepted(f"{local}{at}localhost.locax", lambda _: "localhost")
    if label not in _STAND_INS:
        return _accepted(bare, lambda found: found)
    stand_in = _STAND_INS[label]
    restored = f"{local}{at}{head}{dot}{stand_in}"
    return _accepted(restored, lambda found: found.removesuffix(stand_in) + label)


def _accepted(bare: str, restore: Callable[[str], str]) -> Address:
    found = _validated(bare)
    assert found.ascii_domain is not None
    local = found.local_part or ""
    return _address(local, restore(found.ascii_domain), needs_smtputf8=not local.isascii())


def _validated(bare: str) -> ValidatedEmail:
    try:
        return validate_email(bare, check_deliverability=False)
    except EmailNotValidError as error:
        raise InvalidAddress(str(error)) from error


def _address(local: str, domain: str, *, needs_smtputf8: bool) -> Address:
    return Address(
        email=f"{local}@{domain}",
        dedupe_key=f"{local.lower()}@{domain}",
        domain=domain,
        needs_smtputf8=needs_smtputf8,
    )
