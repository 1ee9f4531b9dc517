"""The one configuration object: frozen, validated at the start, its errors naming the key."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from campaigns.errors import UnknownServer, UnknownStream
from campaigns.policies import AlertPolicy, BreakerPolicy, DomainLimits, seconds, whole_number
from campaigns.server import Server, valid_name
from campaigns.settings_sources import add_validation_errors, read_sources, suggestion
from campaigns.units import DURATION_FORM, Rate, parse_duration_seconds

__all__ = ["BUILT_IN_STREAMS", "DEFAULT_STREAM", "Delivery", "Rate", "Server", "Settings", "load_settings"]

DEFAULT_STREAM = "promotional"
BUILT_IN_STREAMS = (DEFAULT_STREAM, "transactional")
# A unix socket's address has 108 bytes on Linux and 104 on macOS, the final NUL among them.
_SOCKET_PATH_BYTES = 100
_DATABASE_FORM = "sqlite:///file.db or postgresql+psycopg://user@host/database"
_BROKER_FORM = '"embedded", redis://host:6379/0, rediss://host:6379/0 or amqp://user@host/vhost'
_STATE_FORM = "redis://host:6379/1, rediss://host:6379/1 or unix:///path/to/socket?db=1"


def _durations(value: object) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"must be a list, each {DURATION_FORM}")
    return tuple(parse_duration_seconds(item) for item in value)


def _duration_or_none(value: object) -> float | None:
    return None if value is None else parse_duration_seconds(value)  # type: ignore[arg-type]


class Delivery(BaseModel):
    """How a mail is tried: leases, the deadlines of RFC 5321 4.5.3.2 by phase, and what comes after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_uncertain: Literal["hold", "resend"] = "hold"
    lease_seconds: Annotated[float, seconds(3600)] = 20.0
    connect_seconds: Annotated[float, seconds(3600)] = 15.0
    command_seconds: Annotated[float, seconds(3600)] = 60.0
    body_seconds: Annotated[float, seconds(3600)] = 120.0
    dot_seconds: Annotated[float, seconds(3600)] = 600.0
    retry_after_seconds: Annotated[tuple[float, ...], BeforeValidator(_durations)] = Field(
        default=(300.0, 900.0, 3600.0, 14400.0),
        validation_alias=AliasChoices("retry_after", "retry_after_seconds"),
    )
    give_up_after_seconds: Annotated[float, BeforeValidator(parse_duration_seconds)] = Field(
        default=172800.0, validation_alias=AliasChoices("give_up_after", "give_up_after_seconds")
    )
    shutdown_seconds: Annotated[float, seconds(3600)] = 30.0
    max_crashes: Annotated[int, whole_number(1, 1000)] = 5


class Settings(BaseModel):
    """Everything that is configured. Relative paths are relative to `directory`.

    Two of them may live in one process. Values that can hold a password are left out of `repr`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path
    config_file: Path | None = None
    database: str = Field(default="sqlite:///campaigns.db", repr=False, validate_default=True)
    broker: str = Field(default="embedded", repr=False)
    state: str | None = Field(default=None, repr=False)
    servers: tuple[Server, ...] = ()
    delivery: Delivery = Delivery()
    streams: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    stream_weights: dict[str, dict[str, Annotated[int, whole_number(0, 1_000_000)]]] = Field(
        default_factory=dict
    )
    sharing: Literal["capacity", "weights"] = "capacity"
    breaker: BreakerPolicy = BreakerPolicy()
    limits: DomainLimits = Field(default_factory=dict)
    alerts: AlertPolicy = AlertPolicy()
    drill_every_seconds: Annotated[float | None, BeforeValidator(_duration_or_none)] = Field(
        default=None, validation_alias=AliasChoices("drill_every", "drill_every_seconds")
    )

    @field_validator("directory")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.absolute()

    @field_validator("database")
    @classmethod
    def _database_url(cls, value: str, info: ValidationInfo) -> str:
        return _complete_database_url(value, info.data.get("directory", Path.cwd()))

    @field_validator("broker")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        if value != "embedded":
            _check_scheme(value, {"redis", "rediss", "redis+socket", "amqp", "amqps"}, _BROKER_FORM)
        return value

    @field_validator("state")
    @classmethod
    def _known_state(cls, value: str | None) -> str | None:
        if value is not None:
            _check_scheme(value, {"redis", "rediss", "unix"}, _STATE_FORM)
        return value

    @field_validator("servers")
    @classmethod
    def _named_once(cls, servers: tuple[Server, ...]) -> tuple[Server, ...]:
        if not servers:
            raise ValueError("at least one [[servers]] table is needed, with name and url")
        names = [server.name for server in servers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} is used more than once; each server needs its own")
        return servers

    @field_validator("streams", mode="before")
    @classmethod
    def _stream_names(cls, streams: Any) -> Any:
        if isinstance(streams, Mapping):
            for name in streams:
                valid_name(name)
        return streams

    @model_validator(mode="before")
    @classmethod
    def _split_weights(cls, data: Any) -> Any:
        """A stream may be a table of its servers' weights, in its order."""
        if not isinstance(data, dict) or not isinstance(data.get("streams"), Mapping):
            return data
        weighted = {name: route for name, route in data["streams"].items() if isinstance(route, Mapping)}
        routes = {name: list(route) if name in weighted else route for name, route in data["streams"].items()}
        return {**data, "streams": routes, "stream_weights": {**data.get("stream_weights", {}), **weighted}}

    @model_validator(mode="after")
    def _routes_exist(self) -> Settings:
        known = [server.name for server in self.servers]
        mistakes = [
            f"streams.{stream}: {mistake}"
            for stream, route in self.streams.items()
            for mistake in _route_mistakes(route, known)
        ]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def embedded(self) -> bool:
        """True if `campaigns up` starts the broker itself."""
        return self.broker == "embedded"

    @property
    def data_directory(self) -> Path:
        """Beside the configuration: journals, the embedded broker's files."""
        return self.directory / ".campaigns"

    @property
    def missing_database_file(self) -> Path | None:
        """The SQLite file, while it does not exist: what makes it may also make its tables."""
        url = make_url(self.database)
        if url.get_backend_name() != "sqlite" or not url.database:
            return None
        file = Path(url.database)
        return None if file.exists() and file.stat().st_size else file

    @property
    def broker_socket(self) -> Path:
        """Where the embedded broker listens; in a short private directory if the path would be too long."""
        socket = self.data_directory / "valkey.sock"
        if len(os.fsencode(socket)) <= _SOCKET_PATH_BYTES:
            return socket
        digest = hashlib.sha256(os.fsencode(self.data_directory)).hexdigest()[:16]
        name = Path(f"campaigns-{os.getuid()}-{digest}") / "valkey.sock"
        short = Path(tempfile.gettempdir()) / name
        return short if len(os.fsencode(short)) <= _SOCKET_PATH_BYTES else Path("/tmp") / name  # noqa: S108 - owner and mode are checked by the broker

    @property
    def broker_url(self) -> str:
        """The broker as kombu wants it."""
        return f"redis+socket://{quote(str(self.broker_socket))}" if self.embedded else self.broker

    @property
    def state_url(self) -> str | None:
        """Where health and limits are shared, as redis-py wants it. None: each process on its own."""
        if self.state is not None:
            return self.state
        if self.embedded:
            return f"unix://{quote(str(self.broker_socket))}?db=1"
        parts = urlsplit(self.broker)
        if parts.scheme == "redis+socket":
            return f"unix://{parts.path}?db={parse_qs(parts.query).get('virtual_host', ['0'])[0]}"
        return self.broker if parts.scheme in {"redis", "rediss"} else None

    def server(self, name: str) -> Server:
        """The server of that name. Raises UnknownServer."""
        for server in self.servers:
            if server.name == name:
                return server
        known = [server.name for server in self.servers]
        raise UnknownServer(f"no server is named {name!r}; {suggestion(name, known)}")

    def route(self, stream: str) -> tuple[Server, ...]:
        """The servers of a stream in its order; all of them for a stream that has no route of its own."""
        names = self.streams.get(stream)
        return self.servers if names is None else tuple(self.server(name) for name in names)

    def weight(self, server: str, stream: str) -> int:
        """A server's share of a stream, as it is configured."""
        return self.stream_weights.get(stream, {}).get(server, self.server(server).weight)

    def check_stream(self, stream: str) -> str:
        """The stream, if a campaign may use it. Raises UnknownStream."""
        try:
            valid_name(stream)
        except ValueError as error:
            raise UnknownStream(f"stream: {error}") from None
        known = {*BUILT_IN_STREAMS, *self.streams}
        if stream not in known:
            raise UnknownStream(f"no stream is named {stream!r}; {suggestion(stream, sorted(known))}")
        return stream


def load_settings(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the configuration file and what overrides it in the environment.

    The file is `config`, or the one that CAMPAIGNS_CONFIG names, or campaigns.toml in the working directory.
    Raises SettingsError with one line for each mistake: where, which key, what is wrong, what is allowed.
    """
    sources = read_sources(config, environ)
    settings = None
    try:
        values = {"servers": (), **sources.data}
        settings = Settings.model_validate(
            {**values, "directory": sources.directory, "config_file": sources.config_file}
        )
    except ValidationError as error:
        add_validation_errors(sources, error)
    sources.raise_mistakes()
    assert settings is not None
    return settings


def _route_mistakes(route: tuple[str, ...], known: list[str]) -> list[str]:
    if not route:
        return ["must list at least one server"]
    mistakes = [
        f"no server is named {name!r}; {suggestion(name, known)}" for name in route if name not in known
    ]
    if len(set(route)) < len(route):
        mistakes.append("lists a server twice")
    return mistakes


def _check_scheme(value: str, allowed: set[str], form: str) -> None:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError(f"is not a valid address; allowed: {form}") from None
    if parts.scheme not in allowed or not (parts.netloc or parts.path.strip("/")):
        raise ValueError(f"is not a known kind of address; allowed: {form}")


def _complete_database_url(value: str, directory: Path) -> str:
    """SQLite paths made absolute; PostgreSQL through psycopg 3, whatever short form was written."""
    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValueError(f"is not a valid address; allowed: {_DATABASE_FORM}") from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        if not url.database or url.database == ":memory:" or url.host:
            raise ValueError(f"needs a file that several processes can open; allowed: {_DATABASE_FORM}")
        url = url.set(drivername="sqlite", database=str(directory / url.database))
    elif backend in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    else:
        raise ValueError(f"{backend!r} is not supported; allowed: {_DATABASE_FORM}")
    return url.render_as_string(hide_password=False)
