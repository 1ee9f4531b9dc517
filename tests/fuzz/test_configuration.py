"""Configuration of any kind: Settings, or one error that names the key and no secret."""

from __future__ import annotations

import copy
import datetime
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, example, given
from hypothesis import strategies as st

from campaigns.errors import SettingsError
from campaigns.printable import printable
from campaigns.settings import Settings, load_settings
from campaigns.settings_sources import DELIVERY_KEYS, SERVER_KEYS, TOP_KEYS
from tests.fuzz.budget import fuzzed

SECRET = "s3cr3t"


class Literal(str):
    """Stands in a document as it is."""


HUGE = Literal("0x1" + "0" * 5000)  # Python reads it, and then cannot print it

TEXTS = (
    st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from(
        [
            *(
                "",
                "a",
                "primary",
                "secondary",
                "none",
                "starttls",
                "embedded",
                "200/s",
                "5m",
                "0s",
            ),
            *(
                "sqlite:///x.db",
                "sqlite://",
                "postgresql://u@h/d",
                "redis://h:6379/0",
                "redis://[::1",
                "smtp://h:25",
            ),
            *(
                "smtp://h:99999",
                "smtp://[",
                "a@example.com",
                "News <a@example.com>",
                "https://h/x",
                "http://[",
                "\0",
            ),
            *("\x1b[2J", "a\nb", "\u2028", "\u202e", "../x", "/", "12", "1e999", "nan", "-1", "hold"),
        ]
    )
    | st.builds(str.__mul__, st.sampled_from(["x", "9", "/"]), st.just(5000))
)
NUMBERS = st.one_of(
    st.integers(-2, 100),
    st.sampled_from([2**31, 2**63, 10**18, 10**400, -(10**400), HUGE]),
    st.floats(),
)
DATES = st.dates() | st.datetimes() | st.times() | st.just(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
SCALARS = TEXTS | NUMBERS | st.booleans() | DATES
ANYTHING = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(TEXTS, SCALARS, max_size=2)

PRIMARY = {"name": "primary", "url": "smtp://127.0.0.1:25", "tls": "none"}
VALID: dict[str, Any] = {"servers": [PRIMARY]}
FULL: dict[str, Any] = {
    "database": "sqlite:///x.db",
    "broker": "redis://h:6379/0",
    "state": "redis://h:6379/1",
    "sharing": "weights",
    "drill_every": "30d",
    "servers": [
        PRIMARY
        | {"weight": 70, "connections": 5, "rate": "200/s", "limits": ["5/s", "100/h"], "username": ""}
        | {
            "domain_limits": {"*": "1/s"},
            "warm_up": {"start": datetime.date(2026, 1, 1), "per_day": [50, 100]},
        },
        {
            "name": "secondary",
            "url": "smtps://h",
            "weight": 0,
            "on_activate": ["true"],
            "activate_seconds": 5,
        },
    ],
    "delivery": {"on_uncertain": "hold", "lease_seconds": 20, "retry_after": ["5m"], "give_up_after": "2d"},
    "streams": {"promotional": ["primary", "secondary"], "x": {"primary": 1, "secondary": 2}},
    "breaker": {"fault_ratio": 0.5, "failback_percent": [10, 100], "probes": 3},
    "alerts": {"webhook": "https://h/x", "email": "a@example.com", "sender": "b@example.com", "every": "60s"},
    "limits": {"example.com": ["20/s"], "*": "50/s"},
}


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a configuration, and in each table one that is not there yet."""
    found = [path]
    if isinstance(value, dict):
        found.append((*path, "new"))
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(one, (*path, key))
    return found


PATHS = [path for path in paths(FULL) if path]
PATHS += [("servers", 1, key) for key in SERVER_KEYS] + [("delivery", key) for key in DELIVERY_KEYS]


def _within(place: Any, key: str | int) -> Any:
    """What stands there, if anything is left of it."""
    try:
        return place[key]
    except (TypeError, KeyError, IndexError):
        return None


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A good one, in which up to three things were changed into anything, or are gone."""
    data = copy.deepcopy(FULL)
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=3)):
        place: Any = data
        for key in path[:-1]:
            place = _within(place, key)
        if isinstance(place, dict):
            if draw(st.integers(0, 4)) == 0:
                place.pop(path[-1], None)
            else:
                key = draw(TEXTS) if path[-1] == "new" else path[-1]
                place[key] = draw(ANYTHING)
        elif isinstance(place, list) and isinstance(path[-1], int) and path[-1] < len(place):
            place[path[-1]] = draw(ANYTHING)
    return data


def as_toml(value: object) -> str:
    """One value as TOML writes it, tables inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_toml(str(key))} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return value if isinstance(value, Literal) else _quoted(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value).lower()


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(character):08X}" for character in text) + '"'


def document(data: Mapping[str, object]) -> str:
    text = "".join(f"{as_toml(key)} = {as_toml(value)}\n" for key, value in data.items())
    try:
        tomllib.loads(text)
    except ValueError:
        assume(False)
    return text


def loaded(file: Path, environ: Mapping[str, str] | None = None) -> Settings | str:
    """The settings, or the lines of the error; any other exception is a traceback for the operator."""
    try:
        return load_settings(file, environ or {})
    except SettingsError as error:
        return str(error)


def assert_clear(lines: str) -> None:
    """Each line says where, and what; none holds a secret."""
    assert lines.strip() and SECRET not in lines
    for line in lines.split("\n"):
        assert re.match(r"(campaigns\.toml|CAMPAIGNS_\S+): \S", line), line
        assert line.isprintable()


@fuzzed(250)
@given(data=configurations())
@example(data=FULL)
@example(data=VALID | {"drill_every": HUGE})
@example(data=VALID | {"drill_every": 10**400})
@example(data=VALID | {"delivery": {"lease_seconds": HUGE, "give_up_after": HUGE, "on_uncertain": HUGE}})
@example(data=VALID | {"delivery": {"retry_after": [HUGE], "max_crashes": HUGE}})
@example(data=VALID | {"breaker": {"fault_ratio": HUGE, "failback_percent": [HUGE], "probes": HUGE}})
@example(data=VALID | {"limits": {"*": HUGE}, "alerts": {"every": HUGE}})
@example(data={"servers": [{"name": HUGE, "url": HUGE, "rate": HUGE, "weight": HUGE, "tls": HUGE}]})
@example(data={"servers": [PRIMARY | {"url": "smtps://h", "tls": []}]})
@example(data={"servers": [PRIMARY | {"password_file": "\0"}]})
@example(data={"servers": [PRIMARY | {"password_file": HUGE}]})
@example(data={"servers": [PRIMARY | {"password_file": "x" * 5000}]})
@example(data={"servers": [PRIMARY | {"ca_file": "\0"}]})
@example(data={"servers": [PRIMARY | {"ca_file": "x" * 5000}]})
@example(data={"servers": [PRIMARY | {"ca_file": "a\nb"}]})
@example(data={"servers": [PRIMARY | {"a\nb": 1, "\x1b[2J": 2}]})
@example(data={"servers": [PRIMARY | {"password": SECRET}]})
@example(data={"servers": [PRIMARY | {"url": f"smtp://u:{SECRET}@h"}]})
@example(data=VALID | {"database": f"mysql://u:{SECRET}@h/x"})
@example(data=VALID | {"broker": f"sqs://u:{SECRET}@h/x", "state": f"amqp://u:{SECRET}@h:y/x"})
@example(data=VALID | {"alerts": {"webhook": f"https://u:{SECRET}@h/x"}})
@example(data=VALID | {"alerts": {"webhook": f"https://h/{SECRET} x"}})
@example(data=VALID | {"streams": {"x": {"primary": "many"}}})
@example(data=VALID | {"stream_weights": {"x": {"primary": 1}}})
def test_any_document_is_settings_or_an_error_that_names_the_key(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_text(document(data), encoding="utf-8")
    found = loaded(file)
    event("settings" if isinstance(found, Settings) else "an error")
    if isinstance(found, Settings):
        assert_usable(found)
        return
    assert_clear(found)
    keys = tuple(f"campaigns.toml: {printable(key)}" for key in ("servers", *data))
    assert all(line.startswith(keys) for line in found.split("\n"))


def assert_usable(settings: Settings) -> None:
    """What passed the checks can be used: every address and route that is made of it can be made."""
    assert SECRET not in repr(settings) + str(settings)
    assert settings.broker_url and settings.data_directory.is_absolute()
    _ = settings.state_url
    for stream in (*settings.streams, "promotional", "transactional"):
        assert settings.route(stream)
        assert all(settings.weight(server.name, stream) >= 0 for server in settings.servers)
    for server in settings.servers:
        assert 1 <= server.port <= 65535 and server.host


@fuzzed(100)
@given(data=st.binary(max_size=80) | st.text("[]{}=\"'#\n.a1-:\\u", max_size=60).map(str.encode))
@example(data=b"a = " + b"[" * 5000)
@example(data=b"a = " + b"{a=" * 5000)
@example(data=b"a = " + b"9" * 5000)
@example(data=b"a." * 5000 + b"a = 1")
@example(data=b"delivery.lease_seconds." + b"a." * 5000 + b"a = 1")
@example(data=b"broker = 2026-13-45")
@example(data=b"broker = 2026-02-30")
@example(data=b"broker = 99:99:99")
@example(data=b"\xff\xfe")
@example(data=b"\xef\xbb\xbf\xef\xbb\xbf")
def test_any_bytes_are_settings_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_bytes(data)
    found = loaded(file)
    if isinstance(found, str):
        assert_clear(found)


def _nested(table: str, keys: tuple[str, ...]) -> list[str]:
    return [f"CAMPAIGNS_{table}__{key.upper()}" for key in keys]


VARIABLES = st.sampled_from(
    [
        *(f"CAMPAIGNS_{key.upper()}" for key in TOP_KEYS),
        *_nested("DELIVERY", DELIVERY_KEYS),
        *_nested("SERVERS__PRIMARY", (*SERVER_KEYS, "password")),
        *(
            "CAMPAIGNS_STREAMS__",
            "CAMPAIGNS_STREAMS__X_Y",
            "CAMPAIGNS_DELIVERY__",
            "CAMPAIGNS_SERVERS__X__WEIGHT",
        ),
        *("CAMPAIGNS_ALERTS__WEBHOOK", "CAMPAIGNS_ALERTS__EMAIL", "CAMPAIGNS_BREAKER__FAULT_RATIO"),
        *(
            "CAMPAIGNS_BREAKER__FAILBACK_PERCENT",
            "CAMPAIGNS_LIMITS__X",
            "CAMPAIGNS_SERVERS__PRIMARY",
            "CAMPAIGNS_X",
        ),
    ]
)
# The environment holds any bytes but NUL; Python shows those that are no UTF-8 as lone surrogates.
VALUES = (TEXTS | st.text(max_size=5) | st.sampled_from(["\udcff", "/\udcff", '[{"name": "\\ud800"}]'])).map(
    lambda text: text.replace("\0", "").encode("utf-8", "surrogateescape" if "\udcff" in text else "replace")
)


@fuzzed(200)
@given(environ=st.dictionaries(VARIABLES, VALUES, max_size=4))
@example(environ={"CAMPAIGNS_SERVERS__PRIMARY__PASSWORD_FILE": b"\xff"})
@example(environ={"CAMPAIGNS_SERVERS__PRIMARY__CA_FILE": b"\xff"})
@example(
    environ={"CAMPAIGNS_SERVERS": b'[{"name": "\\ud800", "url": "smtp://h", "password_file": "\\ud800"}]'}
)
@example(environ={"CAMPAIGNS_SERVERS": b"9" * 5000})
@example(environ={"CAMPAIGNS_SERVERS": b"[" * 100_000})
@example(environ={"CAMPAIGNS_SERVERS": b'[{"name": "a", "url": "smtp://h", "password": "s3cr3t"}]'})
@example(environ={"CAMPAIGNS_SERVERS__PRIMARY__PASSWORD": SECRET.encode()})
@example(environ={"CAMPAIGNS_SERVERS__PRIMARY__URL": b"smtp://\xff"})
@example(environ={"CAMPAIGNS_DATABASE": b"sqlite:///\xff"})
@example(environ={"CAMPAIGNS_BROKER": b"redis://\xff"})
@example(environ={"CAMPAIGNS_SHARING": b"\xff", "CAMPAIGNS_DRILL_EVERY": b"\xff"})
def test_any_environment_is_settings_or_an_error_that_names_the_variable(
    tmp_path: Path, environ: dict[str, bytes]
) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_text(document(VALID), encoding="utf-8")
    found = loaded(file, {name: value.decode("utf-8", "surrogateescape") for name, value in environ.items()})
    event("settings" if isinstance(found, Settings) else "an error")
    if isinstance(found, str):
        assert_clear(found)
    else:
        assert_usable(found)


@pytest.mark.parametrize("name", ["x" * 5000, "\udcff"])
def test_a_file_that_cannot_be_named_is_a_clear_error(name: str) -> None:
    with pytest.raises(SettingsError):
        load_settings(environ={"CAMPAIGNS_CONFIG": name})
