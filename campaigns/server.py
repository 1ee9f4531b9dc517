"""A mail server as it is configured: where it is, how it is secured, what it may be asked to carry."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from campaigns.policies import DomainLimits, Limits, WarmUp, seconds, whole_number
from campaigns.units import Rate

NAME_FORM = "a small letter, then small letters, digits and hyphens"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PORTS = {"implicit": 465, "starttls": 587, "none": 25}

Tls = Literal["none", "starttls", "implicit"]


def valid_name(name: str) -> str:
    """The name, if it may name a server or a stream. Raises ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: {NAME_FORM}")
    return name


def _rate(value: object) -> object:
    if value is None or isinstance(value, Rate):
        return value
    return Rate.parse(str(value))


class Server(BaseModel):
    """One mail server. `url` in the configuration becomes host, port and tls here."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: Annotated[str, BeforeValidator(valid_name)]
    host: str
    port: Annotated[int, whole_number(1, 65535)]
    tls: Tls = "starttls"
    username: str = ""
    password: SecretStr | None = None
    weight: Annotated[int, whole_number(0, 1_000_000)] = 1
    connections: Annotated[int, whole_number(1, 10_000)] = 20
    rate: Annotated[Rate | None, BeforeValidator(_rate)] = None
    limits: Limits = ()
    domain_limits: DomainLimits = Field(default_factory=dict)
    warm_up: WarmUp | None = None
    on_activate: tuple[str, ...] = ()
    on_deactivate: tuple[str, ...] = ()
    activate_seconds: Annotated[float, seconds(3600)] = 60.0
    ca_file: Path | None = None
    max_messages_per_connection: Annotated[int, whole_number(1, 1_000_000)] = 100

    @model_validator(mode="before")
    @classmethod
    def _split_url(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "host" in data:
            return data
        if "url" not in data:
            raise ValueError("url: is missing: smtp://host:port or smtps://host:port")
        rest = {key: value for key, value in data.items() if key != "url"}
        return {**rest, **_parts(data["url"], rest.get("tls"))}

    @field_validator("ca_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not is_file(value):
            raise ValueError(f"{str(value)!r} is not a file")
        return value

    @field_validator("warm_up", mode="before")
    @classmethod
    def _table(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, (dict, WarmUp)):
            raise ValueError("must be a table: warm_up = { start = 2026-03-02, per_day = [50, 100, 200] }")
        return value

    @field_validator("on_activate", "on_deactivate", mode="before")
    @classmethod
    def _command(cls, value: Any) -> tuple[str, ...]:
        is_list = isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value)
        if not is_list or (value and not value[0]):
            raise ValueError(
                'must be a list: the program and its arguments, such as ["systemctl", "start", "postfix"]'
            )
        return tuple(value)

    @model_validator(mode="after")
    def _hooks_are_of_a_standby(self) -> Server:
        if (self.on_activate or self.on_deactivate) and self.weight > 0:
            raise ValueError("on_activate and on_deactivate are for a cold standby: set weight = 0")
        if self.on_deactivate and not self.on_activate:
            raise ValueError(
                "on_deactivate: is never run without on_activate: add the command that starts the standby"
            )
        return self

    @property
    def is_limited(self) -> bool:
        """Whether it may be given only so much mail in a time."""
        return bool(self.all_limits or self.warm_up)

    @property
    def all_limits(self) -> tuple[Rate, ...]:
        """`rate` and `limits` together."""
        return (*((self.rate,) if self.rate else ()), *self.limits)

    @model_validator(mode="after")
    def _authentication_is_safe(self) -> Server:
        if self.username and self.password is None:
            variable = password_variable(self.name)
            raise ValueError(f"username without a password: set password_file, or {variable}")
        if self.username and self.tls == "none" and not self.is_loopback:
            raise ValueError(
                'a password never goes in plain text over a network: tls must be "starttls" or "implicit"'
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """True if what is sent there never leaves this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def is_file(path: Path) -> bool:
    """Whether it is a file that can be seen. `Path.is_file` raises for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113


def password_variable(name: str) -> str:
    """The environment variable that holds a server's password."""
    return "CAMPAIGNS_PASSWORD_" + name.upper().replace("-", "_")


def _parts(url: object, tls: object) -> dict[str, Any]:
    """Host, port and tls of an `smtp://` or `smtps://` address."""
    form = "smtp://host:port or smtps://host:port"
    try:
        parts = urlsplit(str(url))
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"url: not a valid address: {form}") from None
    if parts.scheme not in {"smtp", "smtps"} or not host or parts.path.strip("/") or parts.query:
        raise ValueError(f"url: must be {form}")
    if parts.username or parts.password:
        raise ValueError("url: no user or password here: use username, and password_file or the environment")
    if parts.scheme == "smtps" and tls not in (None, "implicit"):
        raise ValueError('tls: smtps:// implies "implicit"; leave tls out, or write smtp://')
    tls = "implicit" if parts.scheme == "smtps" else (tls or "starttls")
    return {"host": host, "port": port or _PORTS.get(str(tls), 25), "tls": tls}
