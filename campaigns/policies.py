"""How servers are judged, limited and watched, as it is configured: parts of Settings."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from campaigns.errors import MessageError
from campaigns.header import Mailbox
from campaigns.units import RATE_FORM, Rate, parse_duration_seconds

__all__ = ["ANY_DOMAIN", "AlertPolicy", "BreakerPolicy", "DomainLimits", "Limits", "WarmUp"]

ANY_DOMAIN = "*"
"""In limits by domain: each domain that is not named, by itself."""

_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})*")


def whole_number(least: int, most: int) -> BeforeValidator:
    """Accepts whole numbers, also as text from the environment; its error says the range."""

    def check(value: object) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return int(text)

    return BeforeValidator(check)


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
    found = tuple(item if isinstance(item, Rate) else Rate.parse(str(item)) for item in items)
    periods = [rate.period_seconds for rate in found]
    if not found or len(set(periods)) < len(periods):
        raise ValueError(f"must be a list of rates with different periods, each {RATE_FORM}")
    return found


def rates_by_domain(value: object) -> dict[str, tuple[Rate, ...]]:
    """A table from recipient domains, or "*" for each other one, to rates."""
    if not isinstance(value, dict):
        raise ValueError(
            f'must be a table from domains to rates, such as "example.com" = ["20/s"]; each {RATE_FORM}'
        )
    result = {}
    for domain, one in value.items():
        name = str(domain).lower().strip(".")
        if name != ANY_DOMAIN and not _DOMAIN.fullmatch(name):
            raise ValueError(
                f'{domain!r} is not a domain; write it as in "example.com", or "*" for each other one'
            )
        result[name] = rates(one)
    return result


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


class WarmUp(BaseModel):
    """A new server's allowance: `per_day[0]` mails on the day `start` (UTC), and so on; then no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: date
    per_day: tuple[Annotated[int, whole_number(1, 1_000_000_000)], ...] = Field(min_length=1)

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
