"""Where settings come from: the configuration file, the environment and the password files.

Nothing is judged here but what the models cannot see: unknown keys, unreadable files, where a value came
from. Mistakes are collected, so that the operator sees all of them at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from campaigns.errors import SettingsError
from campaigns.policies import BreakerPolicy, WarmUp
from campaigns.printable import printable
from campaigns.server import is_file, password_variable

logger = logging.getLogger(__name__)

PREFIX = "CAMPAIGNS_"
_PASSWORD_PREFIX = password_variable("")
TOP_KEYS = (
    *("database", "broker", "state", "servers", "delivery", "streams", "sharing", "breaker", "limits"),
    *("alerts", "drill_every"),
)
SERVER_KEYS = (
    *("name", "url", "tls", "username", "password_file", "weight", "connections", "rate", "ca_file"),
    *("max_messages_per_connection", "limits", "domain_limits", "warm_up", "on_activate", "on_deactivate"),
    "activate_seconds",
)
BREAKER_KEYS = tuple(BreakerPolicy.model_fields)
ALERT_KEYS = ("webhook", "email", "sender", "every")
WARM_UP_KEYS = tuple(WarmUp.model_fields)
DELIVERY_KEYS = (
    *("on_uncertain", "lease_seconds", "connect_seconds", "command_seconds", "body_seconds", "dot_seconds"),
    *("retry_after", "give_up_after", "shutdown_seconds", "max_crashes"),
)
KeyPath = tuple[str | int, ...]
_TOML_INTEGER_BITS = 64
_DEEPEST = 20


@dataclass(kw_only=True)
class Sources:
    """What was read, where each overriding value came from, and what is wrong with it so far."""

    directory: Path
    config_file: Path | None
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def mistake(self, path: KeyPath, text: str) -> None:
        """Adds one line: where it was written, the key, what is wrong, what is allowed."""
        for line in text.split("\n"):
            key, line_text = _join(self._named(path), line)
            mistake = self._line(path, key, line_text)
            if mistake not in self.mistakes:
                self.mistakes.append(mistake)

    def _line(self, path: KeyPath, key: str, text: str) -> str:
        for length in range(len(path), 0, -1):
            if variable := self.origins.get(path[:length]):
                return f"{variable}: {text}"
        source = self.config_file.name if self.config_file else "configuration"
        return f"{source}: {key}: {text}" if key else f"{source}: {text}"

    def _named(self, path: KeyPath) -> str:
        """`("servers", 0, "weight")` as `servers.primary.weight`."""
        parts = [str(part) for part in path]
        if len(path) > 1 and path[0] == "servers" and isinstance(path[1], int):
            parts[1] = _server_label(self.data.get("servers"), path[1])
        return ".".join(parts)

    def raise_mistakes(self) -> None:
        if self.mistakes:
            raise SettingsError("\n".join(map(printable, self.mistakes)))


def read_sources(config: Path | None, environ: Mapping[str, str]) -> Sources:
    """Everything that was configured, merged. Raises SettingsError if there is nothing to read."""
    named = config or (Path(environ["CAMPAIGNS_CONFIG"]) if environ.get("CAMPAIGNS_CONFIG") else None)
    file = (named or Path("campaigns.toml")).absolute()
    if not is_utf8(str(file)):
        raise SettingsError(f"{printable(str(file))}: the name of its directory or its own must be UTF-8")
    if named is not None and not is_file(file):
        raise SettingsError(f"{named}: there is no such configuration file; `campaigns init` writes one")
    if not is_file(file) and not _configures(environ):
        raise SettingsError("no campaigns.toml in this directory: run `campaigns init` to write one")
    sources = Sources(directory=file.parent, config_file=file if is_file(file) else None)
    if sources.config_file:
        sources.data = _read_toml(sources.config_file)
        _refuse_unprintable(sources, (), sources.data)
        sources.raise_mistakes()
    _apply_environment(sources, environ)
    _refuse_unknown_keys(sources)
    _read_server_files(sources, environ)
    _warn_of_idle_passwords(sources, environ)
    return sources


def add_validation_errors(sources: Sources, error: ValidationError) -> None:
    """Pydantic's errors in our words; never the value itself where it could be a secret."""
    for item in error.errors(include_url=False, include_context=True):
        path = tuple(part for part in item["loc"] if not str(part).startswith("function-"))
        context = {"given": item.get("input"), **item.get("ctx", {})}
        text = _sentence(path, item["type"], item["msg"], context)
        if path[:1] == ("stream_weights",):  # the operator wrote them elsewhere
            path, text = ("streams", *path[1:]), f"{text}; {_WEIGHTS_FORM}"
        sources.mistake(path, text)


def is_utf8(text: str) -> bool:
    """Not so for what came as other bytes: Python keeps those as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean "weight"?`, or what is allowed."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "allowed: " + ", ".join(names)


def _sentence(path: KeyPath, kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind == "missing":
        return "is missing" + _EXAMPLES.get(str(path[-1]), "")
    if kind == "literal_error":
        return f"{context['given']!r} is not allowed; allowed: {context['expected']}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return _FORMS.get((str(path[0]), len(path)), _TEXT_FORM) if path else message


_EXAMPLES = {
    "start": ": the first day, such as start = 2026-03-02",
    "per_day": ": how many mails on each day, such as per_day = [50, 100, 200]",
}
_WEIGHTS_FORM = "write it as in promotional = { primary = 70, secondary = 30 }"
_TEXT_FORM = 'must be a text in quotes, such as "..."'
_FORMS = {
    ("servers", 1): "must be tables: one [[servers]] for each server, with name and url",
    ("servers", 2): "must be a table: [[servers]], with name and url",
    ("delivery", 1): "must be a table: [delivery], with keys such as lease_seconds",
    ("breaker", 1): "must be a table: [breaker], with keys such as consecutive_faults",
    ("alerts", 1): "must be a table: [alerts], with keys such as webhook",
    ("streams", 1): 'must be a table: [streams], with lines such as promotional = ["primary", "secondary"]',
    ("streams", 2): 'must be a list of servers, such as ["primary", "secondary"]',
    ("streams", 3): 'must be the name of a server, such as "primary"',
}
"""What is allowed where the very type is wrong, by the first key and the depth."""


def _configures(environ: Mapping[str, str]) -> bool:
    return any(key.startswith(PREFIX) and value for key, value in environ.items())


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise SettingsError(f"{file.name}: must be saved as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file.name}: this is not valid TOML: {printable(str(error))}") from None
    except OSError as error:
        raise SettingsError(f"{file.name}: cannot be read: {error.strerror}") from error


def _refuse_unprintable(sources: Sources, path: KeyPath, value: object) -> None:
    """What no error could quote: numbers beyond TOML's own limit, and tables in tables without end."""
    if len(path) > _DEEPEST:
        sources.mistake(path[:1], f"holds tables or lists in more than {_DEEPEST} others")
    elif isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_unprintable(sources, (*path, key), one)
    elif isinstance(value, int) and value.bit_length() >= _TOML_INTEGER_BITS:
        sources.mistake(path, f"is a whole number of more than {_TOML_INTEGER_BITS} bits")


def _apply_environment(sources: Sources, environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        value = environ[variable]
        if not variable.startswith(PREFIX) or not value or variable.startswith(_PASSWORD_PREFIX):
            continue
        path = variable.removeprefix(PREFIX).lower().split("__")
        if not is_utf8(value):
            sources.mistakes.append(f"{variable}: must be UTF-8")
        elif path[0] in TOP_KEYS:
            _override(sources, variable, path, value)
        elif close := difflib.get_close_matches(path[0], TOP_KEYS, n=1, cutoff=0.75):
            sources.mistakes.append(f"{variable}: unknown; did you mean {PREFIX}{close[0].upper()}?")


def _override(sources: Sources, variable: str, path: list[str], value: str) -> None:
    match path:
        case ["database" | "broker" | "state" | "sharing" | "drill_every" as key]:
            sources.data[key] = value
            sources.origins[(key,)] = variable
        case ["delivery" | "breaker" | "alerts" as table, key]:
            is_list = key in {"retry_after", "failback_percent"}
            _table(sources.data, table)[key] = _listed(value) if is_list else value
            sources.origins[(table, key)] = variable
        case ["streams", name]:
            name = name.replace("_", "-")
            _table(sources.data, "streams")[name] = _listed(value)
            sources.origins[("streams", name)] = variable
        case ["servers"]:
            _replace_servers(sources, variable, value)
        case ["servers", name, key]:
            _override_server(sources, variable, name.replace("_", "-"), key, value)
        case _:
            sources.mistakes.append(f"{variable}: unknown; allowed: {PREFIX}DELIVERY__LEASE_SECONDS and such")


def _replace_servers(sources: Sources, variable: str, value: str) -> None:
    try:
        servers = json.loads(value)
        json.dumps(servers, ensure_ascii=False).encode()  # not for what no file name and no server can hold
    except (ValueError, RecursionError):
        servers = None
    if isinstance(servers, list) and all(isinstance(server, dict) for server in servers):
        sources.data["servers"] = servers
        sources.origins[("servers",)] = variable
    else:
        sources.mistakes.append(f"{variable}: must be a JSON list of objects, one a server")


def _override_server(sources: Sources, variable: str, name: str, key: str, value: str) -> None:
    tables = _server_tables(sources)
    for index, table in tables:
        if table.get("name") == name:
            table[key] = value
            sources.origins[("servers", index, key)] = variable
            return
    known = ", ".join(str(table.get("name")) for _, table in tables)
    sources.mistakes.append(f"{variable}: there is no server {name!r}; configured: {known or 'none'}")


def _refuse_unknown_keys(sources: Sources) -> None:
    if sources.data.pop("stream_weights", None) is not None:
        sources.mistake(("stream_weights",), f"belongs under [streams]: {_WEIGHTS_FORM}")
    _take_unknown(sources, (), sources.data, TOP_KEYS)
    for name, known in (("delivery", DELIVERY_KEYS), ("breaker", BREAKER_KEYS), ("alerts", ALERT_KEYS)):
        if isinstance(table := sources.data.get(name), dict):
            _take_unknown(sources, (name,), table, known)
    for index, table in _server_tables(sources):
        if table.pop("password", None) is not None:
            sources.mistake(
                ("servers", index, "password"),
                "not in this file: use password_file, or the environment variable "
                + password_variable(str(table.get("name", "<name>"))),
            )
        _take_unknown(sources, ("servers", index), table, SERVER_KEYS)
        if isinstance(warm_up := table.get("warm_up"), dict):
            _take_unknown(sources, ("servers", index, "warm_up"), warm_up, WARM_UP_KEYS)


def _take_unknown(sources: Sources, path: KeyPath, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in [key for key in table if key not in known]:
        sources.mistake((*path, key), f"unknown key; {_place(path, key) or suggestion(key, known)}")
        del table[key]


def _place(path: KeyPath, key: str) -> str:
    """Where a key belongs that TOML has taken for one of the table above it."""
    is_top = bool(path) and key in TOP_KEYS
    return "it belongs at the top of the file, before the first [table]" if is_top else ""


def _read_server_files(sources: Sources, environ: Mapping[str, str]) -> None:
    for index, table in _server_tables(sources):
        if isinstance(ca_file := table.get("ca_file"), str):
            table["ca_file"] = sources.directory / ca_file
        password_file = table.pop("password_file", None)
        password = environ.get(password_variable(str(table.get("name", ""))))
        if not password and password_file:
            password = _read_password(sources, index, sources.directory / str(password_file))
            if not table.get("username"):
                sources.mistake(("servers", index, "username"), "is missing, and there is a password_file")
        if password:
            table["password"] = password


def _warn_of_idle_passwords(sources: Sources, environ: Mapping[str, str]) -> None:
    """A password for a server that there is not is a typing mistake, or one that was forgotten."""
    names = [str(table.get("name", "")) for _, table in _server_tables(sources)]
    for variable in sorted(environ):
        is_password = variable.startswith(_PASSWORD_PREFIX) and bool(environ[variable])
        if is_password and variable not in map(password_variable, names):
            logger.warning(
                "a password for a server that is not configured",
                extra={"variable": variable, "configured": " ".join(names)},
            )


def _read_password(sources: Sources, index: int, file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
        if file.stat().st_mode & 0o077:
            logger.warning("password file can be read by others: chmod 600", extra={"file": str(file)})
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name or what it holds is no text"
        sources.mistake(
            ("servers", index, "password_file"), f"{printable(str(file))} cannot be read: {reason}"
        )
        return "unreadable"
    if not password:
        sources.mistake(("servers", index, "password_file"), f"{printable(str(file))} is empty")
        return "empty"
    return password


def _server_tables(sources: Sources) -> list[tuple[int, dict[str, Any]]]:
    servers = sources.data.get("servers")
    if not isinstance(servers, list):
        return []
    return [(index, table) for index, table in enumerate(servers) if isinstance(table, dict)]


def _server_label(servers: object, index: int) -> str:
    """A server's name, or its place in the file (from 1) while it has none."""
    if isinstance(servers, list) and index < len(servers) and isinstance(servers[index], dict):
        name = servers[index].get("name")
        if isinstance(name, str) and name:
            return name
    return f"[{index + 1}]"


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(data.get(key), dict):
        data[key] = {}
    table: dict[str, Any] = data[key]
    return table


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _join(key: str, text: str) -> tuple[str, str]:
    """A message that begins with a key of its own, `url: ...` or `"a.example": ...`, belongs to that key."""
    if match := re.match(r"([a-z_]+|[\w-]+(?:\.[\w-]+)+|\"[^\"]*\"): (.*)", text):
        return (f"{key}.{match[1]}" if key else match[1]), match[2]
    return key, text
