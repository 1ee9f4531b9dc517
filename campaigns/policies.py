"""How servers are judged, limited and watched, as it is configured: parts of Settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from campaigns.errors import MessageError
from campaigns.header import Mailbox
from campaigns.printable import printable
from campaigns.units import RATE_FORM, Rate, parse_duration_seconds

__all__ = ["ANY_DOMAIN", "AlertPolicy", "BreakerPolicy", "DomainLimits", "Limits", "WarmUp"]

ANY_DOMAIN = "*"
"""In limits by domain: each domain that is not named, by itself."""

_NAMES_OF_RATES = frozenset({"rate", "rates", "limit", "limits"})
_MOST_LABELS = 10
_MOST_A_DAY = 1_000_000_000
_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")


def whole_number(least: int, most: int) -> BeforeValidator:
    """Accepts whole numbers, also as text from the environment; its error says the range."""
    return BeforeValidator(lambda value: _whole(value, least, most))


def _whole(value: object, least: int, most: int) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", text) or not least <= int(text) <= most:
        raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
    return int(text)


def seconds(most: float) -> BeforeValidator:
    """Accepts numbers of seconds above 0, also as text; its error says the range."""

    def check(value: object) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = -1.0
        if isinstance(value, bool) or not 0 < number <= most:
            raise ValueError(f"{value!r} is not a number of seconds, more than 0 and at most {most:g}")
        return number

    return BeforeValidator(check)


def rates(value: object) -> tuple[Rate, ...]:
    """One rate or a list of them, one for each period."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, (dict, list)) for item in items):
        raise ValueError(f"must be a rate or a list of rates, each {RATE_FORM}")
    found = tuple(item if isinstance(item, Rate) else Rate.parse(str(item)) for item in items)
    periods = [rate.period_seconds for rate in found]
    if not found or len(set(periods)) < len(periods):
        raise ValueError(f"must be a list of rates with different periods, each {RATE_FORM}")
    return found


def rates_by_domain(value: object) -> dict[str, tuple[Rate, ...]]:
    """A table from recipient domains, or "*" for each other one, to rates. Each mistake is a line."""
    if not isinstance(value, dict):
        raise ValueError(
            f'must be a table from domains to rates, such as "example.com" = ["20/s"]; each {RATE_FORM}'
        )
    result: dict[str, tuple[Rate, ...]] = {}
    written: dict[str, str] = {}
    mistakes: list[str] = []
    for key, one in value.items():
        name = str(key).lower().strip(".")
        try:
            result[name] = _rates_of(str(key), name, one)
            if (other := written.setdefault(name, str(key))) != key:
                mistakes.append(f'"{key}": is the same domain as "{other}": keep one of the two')
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return result


def _rates_of(key: str, name: str, value: object) -> tuple[Rate, ...]:
    """The rates of one domain. Raises ValueError that begins with the key."""
    if isinstance(value, dict):
        raise ValueError("\n".join(_unquoted(key, value)))
    if name != ANY_DOMAIN and not _DOMAIN.fullmatch(name):
        raise ValueError(f'{key!r} is not a domain; write it as in "example.com", or "*" for each other one')
    if name not in {ANY_DOMAIN, "localhost"} and "." not in name:
        raise ValueError(f'"{key}": no address has a domain without a dot; write it as in "example.com"')
    try:
        return rates(value)
    except ValueError as error:
        raise ValueError(f'"{key}": {error}') from None


def _unquoted(first: str, table: dict[Any, Any]) -> Iterator[str]:
    """What is wrong with a domain without quotes, which TOML reads as tables in tables."""
    for parts, value in _leaves((first,), table):
        domain = ".".join(parts[:-1] if parts[-1] in _NAMES_OF_RATES else parts)
        if domain != ANY_DOMAIN and not _DOMAIN.fullmatch(domain.lower()):
            domain = "example.com"
        rate = f'"{value}"' if isinstance(value, str) and _is_rate(value) else '"20/s"'
        key = printable(".".join(parts))
        yield f'{key}: a domain needs quotes, and its rates behind it: "{domain}" = {rate}'


def _leaves(parts: tuple[str, ...], table: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], object]]:
    """What is in tables in tables, with the keys on the way there; not in ever more of them."""
    waiting: list[tuple[tuple[str, ...], object]] = [(parts, table)]
    while waiting:
        parts, value = waiting.pop()
        if isinstance(value, dict) and value and len(parts) < _MOST_LABELS:
            waiting += [((*parts, str(key)), one) for key, one in reversed(value.items())]
        else:
            yield parts, value


def _is_rate(text: str) -> bool:
    try:
        Rate.parse(text)
    except ValueError:
        return False
    return True


Limits = Annotated[tuple[Rate, ...], BeforeValidator(rates)]
DomainLimits = Annotated[dict[str, tuple[Rate, ...]], BeforeValidator(rates_by_domain)]


class BreakerPolicy(BaseModel):
    """When a server is given up, and how it gets its load back. Percentages are of its usual share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consecutive_faults: Annotated[int, whole_number(1, 1000)] = 5
    fault_ratio: float = 0.5
    """Of what happened within the window, if that is `minimum_volume` or more."""
    window_seconds: Annotated[float, seconds(3600)] = 30.0
    minimum_volume: Annotated[int, whole_number(1, 1_000_000)] = 20
    slow_seconds: Annotated[float, seconds(3600)] = 10.0
    """A reply that takes longer counts as a fault, while it is awaited already."""
    cool_down_seconds: Annotated[float, seconds(3600)] = 2.0
    longest_cool_down_seconds: Annotated[float, seconds(86400)] = 120.0
    probes: Annotated[int, whole_number(1, 100)] = 3
    """Real mails that must go through before the load comes back."""
    failback_percent: tuple[int, ...] = (10, 25, 50, 100)
    failback_seconds: Annotated[float, seconds(3600)] = 5.0
    """How long each step lasts."""

    @field_validator("fault_ratio", mode="before")
    @classmethod
    def _part(cls, value: object) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = -1.0
        if isinstance(value, bool) or not 0 < number <= 1:
            raise ValueError(f"{value!r} is not a part, more than 0 and at most 1")
        return number

    @field_validator("failback_percent", mode="before")
    @classmethod
    def _steps(cls, value: Any) -> tuple[int, ...]:
        form = "must be a rising list of percentages that ends with 100, such as [10, 25, 50, 100]"
        try:
            steps = tuple(int(str(item)) for item in value)
        except (TypeError, ValueError):
            raise ValueError(form) from None
        if not steps or steps[-1] != 100 or steps[0] < 1 or list(steps) != sorted(set(steps)):
            raise ValueError(form)
        return steps

    @model_validator(mode="after")
    def _first_is_not_the_longest(self) -> BreakerPolicy:
        if self.cool_down_seconds > self.longest_cool_down_seconds:
            raise ValueError(
                f"cool_down_seconds: {self.cool_down_seconds:g} is more than longest_cool_down_seconds ="
                f" {self.longest_cool_down_seconds:g}: lower it, or raise that one"
            )
        return self


class WarmUp(BaseModel):
    """A new server's allowance: `per_day[0]` mails on the day `start` (UTC), and so on; then no limit.

    It may fall: on a weekend, or where somebody has taken a step back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: date
    per_day: tuple[int, ...]

    @field_validator("start", mode="before")
    @classmethod
    def _first_day(cls, value: object) -> date:
        try:
            day = date.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            day = None
        if not isinstance(day, date) or isinstance(day, datetime):
            raise ValueError("must be a day without a time, such as start = 2026-03-02")
        return day

    @field_validator("per_day", mode="before")
    @classmethod
    def _days(cls, value: object) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("must be a list of mails a day, such as per_day = [50, 100, 200]")
        return tuple(_mails_of_day(number, mails) for number, mails in enumerate(value, start=1))

    def allowance(self, today: date) -> int | None:
        """Mails that may go out on that day; None: as many as one likes. Before the start, none."""
        index = (today - self.start).days
        if index < 0:
            return 0
        return self.per_day[index] if index < len(self.per_day) else None


class AlertPolicy(BaseModel):
    """Whom to tell of changes, and how often at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    webhook: str | None = Field(default=None, repr=False)
    """An address that is posted a JSON object; it may hold a secret."""
    email: str | None = None
    sender: str | None = None
    """From whom the e-mail is; left out: from `email` itself."""
    every_seconds: Annotated[float, BeforeValidator(parse_duration_seconds)] = Field(
        default=60.0, validation_alias=AliasChoices("every", "every_seconds")
    )
    """What happens within this time comes in one message."""

    @field_validator("webhook")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return None if value is None else _web_address(value)

    @field_validator("email")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else _mailbox("To", value).address.email

    @field_validator("sender")
    @classmethod
    def _sender(cls, value: str | None) -> str | None:
        if value is not None:
            _mailbox("From", value)
        return value


def _mails_of_day(number: int, mails: object) -> int:
    """What goes out on that day of a warm-up, the first being 1. Raises ValueError that says which."""
    try:
        return _whole(mails, 1, _MOST_A_DAY)
    except ValueError as error:
        raise ValueError(f"day {number}: {error}") from None


def _web_address(value: str) -> str:
    """Nothing of it is in the errors: it may hold a secret."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a valid address") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be an http:// or https:// address")
    if parts.username is not None or not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must have neither a user name, blanks nor letters beyond ASCII in it")
    return value


def _mailbox(header: str, value: str) -> Mailbox:
    try:
        return Mailbox.parse(header, value)
    except MessageError as error:
        raise ValueError(str(error).removeprefix(f"The {header} header ")) from None
