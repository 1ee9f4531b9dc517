"""The configuration: what is read, what overrides it, and how each mistake is reported."""

from __future__ import annotations

import logging
import os
from datetime import date
from pathlib import Path

import pytest
from pydantic import SecretStr

from campaigns.errors import SettingsError, UnknownServer, UnknownStream
from campaigns.settings import Delivery, Rate, Server, Settings, load_settings
from campaigns.units import parse_duration_seconds

TWO_SERVERS = """
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:2525"
tls = "none"
weight = 70
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:2526"
tls = "none"
weight = 30
"""


def write(directory: Path, text: str) -> Path:
    file = directory / "campaigns.toml"
    file.write_text(text, encoding="utf-8")
    return file


def mistakes(directory: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(directory, text), environ)
    return str(caught.value).splitlines()


def test_everything_but_the_servers_has_a_default(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, TWO_SERVERS), {})
    assert settings.database == f"sqlite:///{tmp_path}/campaigns.db"
    assert settings.embedded
    assert settings.delivery == Delivery()
    assert settings.delivery.retry_after_seconds == (300, 900, 3600, 14400)
    assert settings.delivery.give_up_after_seconds == 172800
    assert [server.name for server in settings.route("anything")] == ["primary", "secondary"]


def test_a_server_is_read_from_its_url(tmp_path: Path) -> None:
    text = """
[[servers]]
name = "primary"
url = "smtps://mail.example.com"
rate = "600/m"
connections = 7
[[servers]]
name = "relay-2"
url = "smtp://[::1]:2525"
"""
    primary, relay = load_settings(write(tmp_path, text), {}).servers
    assert (primary.host, primary.port, primary.tls) == ("mail.example.com", 465, "implicit")
    assert primary.rate == Rate(count=600, period_seconds=60)
    assert primary.rate.per_second == 10
    assert primary.connections == 7
    assert (relay.host, relay.port, relay.tls) == ("::1", 2525, "starttls")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("x")
    file = write(tmp_path, 'database = "sqlite:///data/x.db"' + TWO_SERVERS + 'ca_file = "ca.pem"\n')
    monkeypatch.chdir("/")
    settings = load_settings(file, {})
    assert settings.database == f"sqlite:///{tmp_path}/data/x.db"
    assert settings.server("secondary").ca_file == tmp_path / "ca.pem"


def test_the_file_is_in_the_working_directory_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, TWO_SERVERS)
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).config_file == file
    monkeypatch.chdir("/")
    assert load_settings(environ={"CAMPAIGNS_CONFIG": str(file)}).config_file == file


def test_without_any_configuration_the_error_names_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="campaigns init"):
        load_settings(environ={})


def test_a_configuration_that_is_named_but_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such configuration file"):
        load_settings(environ={"CAMPAIGNS_CONFIG": str(tmp_path / "none.toml")})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = load_settings(
        write(tmp_path, TWO_SERVERS),
        {
            "CAMPAIGNS_DATABASE": "postgresql://me@db.example/app",
            "CAMPAIGNS_BROKER": "redis://broker.example:6379/3",
            "CAMPAIGNS_STATE": "",
            "CAMPAIGNS_DELIVERY__LEASE_SECONDS": "7",
            "CAMPAIGNS_DELIVERY__RETRY_AFTER": "90s, 2d",
            "CAMPAIGNS_STREAMS__PROMOTIONAL": "secondary,primary",
            "CAMPAIGNS_SERVERS__PRIMARY__WEIGHT": "0",
        },
    )
    assert settings.database == "postgresql+psycopg://me@db.example/app"
    assert settings.broker_url == settings.state_url == "redis://broker.example:6379/3"
    assert settings.delivery.lease_seconds == 7
    assert settings.delivery.retry_after_seconds == (90, 172800)
    assert [server.name for server in settings.route("promotional")] == ["secondary", "primary"]
    assert settings.server("primary").weight == 0


def test_the_environment_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    servers = '[{"name": "primary", "url": "smtp://127.0.0.1:25", "tls": "none"}]'
    settings = load_settings(environ={"CAMPAIGNS_SERVERS": servers})
    assert settings.config_file is None
    assert settings.directory == tmp_path
    assert settings.server("primary").port == 25


def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        TWO_SERVERS,
        CAMPAIGNS_DELIVERY__LEASE_SECONDS="soon",
        CAMPAIGNS_DATABSE="sqlite:///x.db",
        CAMPAIGNS_SERVERS__TERTIARY__WEIGHT="1",
    )
    assert found[0] == "CAMPAIGNS_DATABSE: unknown; did you mean CAMPAIGNS_DATABASE?"
    assert found[1].startswith("CAMPAIGNS_SERVERS__TERTIARY__WEIGHT: there is no server 'tertiary'")
    assert found[2].startswith("CAMPAIGNS_DELIVERY__LEASE_SECONDS: 'soon' is not a number of seconds")


def test_a_password_comes_from_the_environment_and_is_never_shown(tmp_path: Path) -> None:
    text = TWO_SERVERS.replace('"secondary"', '"relay-2"') + 'username = "me"\n'
    settings = load_settings(write(tmp_path, text), {"CAMPAIGNS_PASSWORD_RELAY_2": "s3cret"})
    assert settings.server("relay-2").password == SecretStr("s3cret")
    assert "s3cret" not in repr(settings) + str(settings)


def test_a_password_in_the_database_address_is_not_in_the_repr(tmp_path: Path) -> None:
    file = write(tmp_path, TWO_SERVERS)
    environ = {
        "CAMPAIGNS_DATABASE": "postgresql://me:s3cret@db/x",
        "CAMPAIGNS_BROKER": "redis://:s3cret@broker/0",
    }
    settings = load_settings(file, environ)
    assert "s3cret" in settings.database
    assert "s3cret" not in repr(settings) + str(settings)


def test_a_password_file_is_read_and_loose_permissions_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = tmp_path / "primary.password"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    file = write(tmp_path, TWO_SERVERS + 'username = "me"\npassword_file = "primary.password"\n')
    with caplog.at_level(logging.WARNING):
        assert load_settings(file, {}).server("secondary").password == SecretStr("s3cret")
    assert not caplog.records
    secret.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load_settings(file, {})
    assert "can be read by others" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("line", "key", "wrong", "allowed"),
    [
        ('brocker = "embedded"', "brocker", "unknown key", 'did you mean "broker"?'),
        ('database = "mysql://u:pw@h/x"', "database", "'mysql' is not supported", "postgresql+psycopg://"),
        ('database = "sqlite://"', "database", "needs a file", "sqlite:///file.db"),
        ('database = "nonsense"', "database", "is not a valid address", "sqlite:///file.db"),
        ("database = 5", "database", "must be a text in quotes", 'such as "..."'),
        ('broker = "sqs://x"', "broker", "is not a known kind", '"embedded", redis://'),
        ('broker = "redis://h:port"', "broker", "is not a valid address", "redis://host:6379/0"),
        ('state = "amqp://x"', "state", "is not a known kind", "redis://host:6379/1"),
    ],
)
def test_a_mistake_at_the_top_names_key_fault_and_what_is_allowed(
    tmp_path: Path, line: str, key: str, wrong: str, allowed: str
) -> None:
    (found,) = mistakes(tmp_path, line + TWO_SERVERS)
    assert found.startswith(f"campaigns.toml: {key}: ")
    assert wrong in found and allowed in found
    assert "pw" not in found


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        ("weight = -3", "weight", "-3 is not a whole number from 0 to"),
        ("weight = 1.5", "weight", "1.5 is not a whole number from 0 to"),
        ("weight = true", "weight", "True is not a whole number from 0 to"),
        ("connections = 0", "connections", "0 is not a whole number from 1 to"),
        ('rate = "5/w"', "rate", "'5/w' is not a rate such as \"200/s\""),
        ('rate = "0/s"', "rate", "'0/s' is not a rate such as \"200/s\""),
        ('rate = "1000001/s"', "rate", "'1000001/s' is more than 1,000,000 mails a second"),
        (f'rate = "{"9" * 5000}/s"', "rate", 'is not a rate such as "200/s"'),
        ("conections = 4", "conections", 'unknown key; did you mean "connections"?'),
        ('password = "hunter2"', "password", "use password_file, or the environment variable"),
        ('username = "me"', "", "username without a password: set password_file, or CAMPAIGNS_PASSWORD_X"),
        ('password_file = "none"', "password_file", "cannot be read: No such file"),
        ('ca_file = "none.pem"', "ca_file", "is not a file"),
    ],
)
def test_a_mistake_in_a_server_names_the_server_and_the_key(
    tmp_path: Path, line: str, key: str, text: str
) -> None:
    server = f'[[servers]]\nname = "x"\nurl = "smtp://127.0.0.1:25"\ntls = "none"\n{line}\n'
    found = mistakes(tmp_path, server)
    assert found[0].startswith(f"campaigns.toml: servers.x.{key}".rstrip("."))
    assert text in found[0]
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("url", "tls", "text"),
    [
        ("http://h", "none", "servers.x.url: must be smtp://host:port or smtps://host:port"),
        ("smtp://h:99999", "none", "servers.x.url: not a valid address"),
        ("smtp://me:hunter2@h", "none", "servers.x.url: no user or password here"),
        ("smtps://h", "starttls", 'servers.x.tls: smtps:// implies "implicit"'),
        ("smtp://h", "ssl", "servers.x.tls: 'ssl' is not allowed; allowed: 'none', 'starttls' or 'implicit'"),
    ],
)
def test_a_wrong_url_is_reported_at_its_key(tmp_path: Path, url: str, tls: str, text: str) -> None:
    (found,) = mistakes(tmp_path, f'[[servers]]\nname = "x"\nurl = "{url}"\ntls = "{tls}"\n')
    assert text in found
    assert "hunter2" not in found


def test_a_password_over_plain_text_is_refused_except_to_this_machine(tmp_path: Path) -> None:
    far = '[[servers]]\nname = "x"\nurl = "smtp://{}:25"\ntls = "none"\nusername = "me"\n'
    environ = {"CAMPAIGNS_PASSWORD_X": "p"}
    (found,) = mistakes(tmp_path, far.format("mail.example.com"), **environ)
    assert "never goes in plain text over a network" in found
    assert load_settings(write(tmp_path, far.format("127.0.0.1")), environ).server("x").username == "me"


@pytest.mark.parametrize("name", ["Primary", "1st", "a_b", "", "a b", "é"])
def test_the_names_of_servers_are_checked(tmp_path: Path, name: str) -> None:
    (found,) = mistakes(tmp_path, f'[[servers]]\nname = "{name}"\nurl = "smtp://h"\n')
    assert "is not a name: a small letter" in found


def test_two_servers_of_one_name_are_refused(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, TWO_SERVERS.replace("secondary", "primary"))
    assert "servers: the name 'primary' is used more than once" in found


def test_no_server_at_all_is_refused(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, 'broker = "embedded"')
    assert "servers: at least one [[servers]] table is needed" in found


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            'on_uncertain = "drop"',
            "delivery.on_uncertain: 'drop' is not allowed; allowed: 'hold' or 'resend'",
        ),
        ("lease_seconds = 0", "delivery.lease_seconds: 0 is not a number of seconds"),
        ('dot_seconds = "x"', "delivery.dot_seconds: 'x' is not a number of seconds"),
        ("body_seconds = nan", "delivery.body_seconds: nan is not a number of seconds"),
        ('retry_after = ["5q"]', "delivery.retry_after: '5q' is not a duration such as"),
        ("retry_after = []", "delivery.retry_after: must be a list"),
        ('give_up_after = "0s"', "delivery.give_up_after: '0s' is not a duration"),
        (
            'drill_every = "30d"',
            "delivery.drill_every: unknown key; it belongs at the top of the file, before the first [table]",
        ),
        ("leese_seconds = 3", 'delivery.leese_seconds: unknown key; did you mean "lease_seconds"?'),
    ],
)
def test_a_mistake_in_delivery_names_its_key(tmp_path: Path, line: str, text: str) -> None:
    (found,) = mistakes(tmp_path, f"{TWO_SERVERS}\n[delivery]\n{line}\n")
    assert text in found


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            'promotional = ["primery"]',
            "streams.promotional: no server is named 'primery'; did you mean \"primary\"?",
        ),
        ("promotional = []", "streams.promotional: must list at least one server"),
        ('promotional = ["primary", "primary"]', "streams.promotional: lists a server twice"),
        ('Promo = ["primary"]', "'Promo' is not a name"),
        ('promotional = "primary"', 'streams.promotional: must be a list of servers, such as ["primary"'),
        ("promotional = [1]", 'streams.promotional.0: must be the name of a server, such as "primary"'),
    ],
)
def test_a_mistake_in_a_route_names_the_stream(tmp_path: Path, line: str, text: str) -> None:
    (found,) = mistakes(tmp_path, f"{TWO_SERVERS}\n[streams]\n{line}\n")
    assert text in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("servers = 3", "servers: must be tables: one [[servers]] for each server"),
        ("servers = [1]", "servers.[1]: must be a table: [[servers]], with name and url"),
        ("delivery = 3" + TWO_SERVERS, "delivery: must be a table: [delivery]"),
        ("streams = 3" + TWO_SERVERS, "streams: must be a table: [streams]"),
        (TWO_SERVERS + "username = 3", "servers.secondary.username: must be a text in quotes"),
        (TWO_SERVERS + "ca_file = 3", "servers.secondary.ca_file: must be a text in quotes"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_what_it_must_be(tmp_path: Path, text: str, found: str) -> None:
    (line,) = mistakes(tmp_path, text)
    assert line.startswith(f"campaigns.toml: {found}")


FIRST = "a domain needs quotes, and its rates behind it: "


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ('example.com = "10/s"', [f'example.com: {FIRST}"example.com" = "10/s"']),
        ("example.com = 10", [f'example.com: {FIRST}"example.com" = "20/s"']),
        (
            'co.uk.example = "5/s"\nexample.com = "1/s"\nexample.org = ["1/s"]',
            [
                f'co.uk.example: {FIRST}"co.uk.example" = "5/s"',
                f'example.com: {FIRST}"example.com" = "1/s"',
                f'example.org: {FIRST}"example.org" = "20/s"',
            ],
        ),
        ('"example.com".rate = "5/s"', [f'example.com.rate: {FIRST}"example.com" = "5/s"']),
        ('"*".rate = "5/s"', [f'*.rate: {FIRST}"*" = "5/s"']),
        (
            '"example.com" = "10"\n"a.example" = ["5/s", "6/s"]',
            [
                "\"example.com\": '10' is not a rate such as",
                '"a.example": must be a list of rates with different periods',
            ],
        ),
        (
            '"Example.com" = "5/s"\n"example.com" = "6/s"\n"example.com." = "6/s"',
            [
                '"example.com": is the same domain as "Example.com": keep one of the two',
                '"example.com.": is the same domain as "Example.com": keep one of the two',
            ],
        ),
        ('"gmail" = "5/s"', ['"gmail": no address has a domain without a dot; write it as in "example.com"']),
        ('"exam ple" = "5/s"', ["'exam ple' is not a domain; write it as in \"example.com\""]),
    ],
)
def test_a_mistake_in_limits_by_domain_names_the_domain_and_shows_the_form(
    tmp_path: Path, table: str, found: list[str]
) -> None:
    for key in ("limits", "servers.secondary.domain_limits"):
        header = "[limits]" if key == "limits" else "[servers.domain_limits]"
        lines = mistakes(tmp_path, f"{TWO_SERVERS}\n{header}\n{table}\n")
        assert all(line.startswith(f"campaigns.toml: {key}") for line in lines)
        assert [text in line for line, text in zip(lines, found, strict=True)] == [True] * len(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", ": must be a table: warm_up = { start = 2026-03-02, per_day = ["),
        ("{ per_day = [5] }", ".start: is missing: the first day, such as start = 2026-03-02"),
        ("{ start = 2026-03-02 }", ".per_day: is missing: how many mails on each day, such as per_day = ["),
        ('{ start = "soon", per_day = [5] }', ".start: must be a day without a time, such as start = 2026-"),
        ("{ start = 2026-03-02T10:00:00, per_day = [5] }", ".start: must be a day without a time"),
        (
            "{ start = 2026-03-02, per_day = 50 }",
            ".per_day: must be a list of mails a day, such as per_day =",
        ),
        ("{ start = 2026-03-02, per_day = [] }", ".per_day: must be a list of mails a day"),
        ("{ start = 2026-03-02, per_day = [50, -1] }", ".per_day: day 2: -1 is not a whole number from 1 to"),
    ],
)
def test_a_mistake_in_a_warm_up_names_its_key_and_shows_the_form(
    tmp_path: Path, value: str, text: str
) -> None:
    (found,) = mistakes(tmp_path, f"{TWO_SERVERS}\nwarm_up = {value}\n")
    assert found.startswith(f"campaigns.toml: servers.secondary.warm_up{text}")


def test_a_warm_up_may_take_a_step_back(tmp_path: Path) -> None:
    value = '{ start = "2026-03-02", per_day = [50, 100, 50, 100, 200] }'
    settings = load_settings(write(tmp_path, f"{TWO_SERVERS}\nwarm_up = {value}\n"), {})
    warm_up = settings.server("secondary").warm_up
    assert warm_up is not None and warm_up.allowance(date(2026, 3, 4)) == 50


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            '[streams]\npromotional = { primary = "x" }',
            "streams.promotional.primary: 'x' is not a whole number",
        ),
        ("[streams]\npromotional.primary = [70]", "streams.promotional.primary: [70] is not a whole number"),
        ("[stream_weights]\npromotional = { primary = 1 }", "stream_weights: belongs under [streams]: "),
    ],
)
def test_a_mistake_in_a_streams_weights_shows_the_form(tmp_path: Path, line: str, text: str) -> None:
    (found,) = mistakes(tmp_path, f"{TWO_SERVERS}\n{line}\n")
    assert found.startswith(f"campaigns.toml: {text}")
    assert found.endswith("write it as in promotional = { primary = 70, secondary = 30 }")


def test_what_stops_a_standby_is_nothing_without_what_starts_it(tmp_path: Path) -> None:
    reserve = TWO_SERVERS.replace("weight = 30", "weight = 0")
    (found,) = mistakes(tmp_path, f'{reserve}\non_deactivate = ["stop"]\n')
    assert found.startswith(
        "campaigns.toml: servers.secondary.on_deactivate: is never run without on_activate"
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("cool_down_seconds = 300", "300 is more than longest_cool_down_seconds = 120"),
        ("longest_cool_down_seconds = 1", "2 is more than longest_cool_down_seconds = 1"),
    ],
)
def test_a_first_cool_down_is_never_longer_than_the_longest(tmp_path: Path, line: str, text: str) -> None:
    (found,) = mistakes(tmp_path, f"{TWO_SERVERS}\n[breaker]\n{line}\n")
    assert found.startswith(f"campaigns.toml: breaker.cool_down_seconds: {text}")


def test_a_password_for_a_server_that_is_not_configured_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, TWO_SERVERS)
    with caplog.at_level(logging.WARNING):
        load_settings(file, {"CAMPAIGNS_PASSWORD_PRIMARY": "s3cret", "CAMPAIGNS_PASSWORD_OLD": ""})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load_settings(file, {"CAMPAIGNS_PASSWORD_PRIMRY": "s3cret"})
    (record,) = caplog.records
    assert vars(record)["variable"] == "CAMPAIGNS_PASSWORD_PRIMRY"
    assert vars(record)["configured"] == "primary secondary" and "s3cret" not in str(vars(record))


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = 'brocker = "x"\nstate = "x"' + TWO_SERVERS + 'rate = "much"\n[delivery]\nlease_seconds = 0\n'
    found = mistakes(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == [
        "brocker",
        "state",
        "servers.secondary.rate",
        "delivery.lease_seconds",
    ]


def test_broken_toml_is_one_line_with_its_place(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, "database = \n")
    assert found.startswith("campaigns.toml: this is not valid TOML") and "line 1" in found


def test_a_file_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "campaigns.toml"
    file.write_bytes(b'database = "\xff"')
    with pytest.raises(SettingsError, match="must be saved as UTF-8"):
        load_settings(file, {})


def test_the_embedded_broker_listens_beside_the_configuration(tmp_path: Path) -> None:
    settings = Settings(directory=Path("/srv/app"), servers=(server(),))
    assert settings.broker_url == "redis+socket:///srv/app/.campaigns/valkey.sock"
    assert settings.state_url == "unix:///srv/app/.campaigns/valkey.sock?db=1"


def test_a_socket_path_that_is_too_long_moves_to_a_short_directory_of_its_own() -> None:
    deep = Settings(directory=Path("/" + "d" * 120), servers=(server(),))
    other = Settings(directory=Path("/" + "e" * 120), servers=(server(),))
    assert len(os.fsencode(deep.broker_socket)) < 104
    assert deep.broker_socket != other.broker_socket
    assert deep.broker_socket == Settings(directory=Path("/" + "d" * 120), servers=(server(),)).broker_socket


def test_without_redis_there_is_no_shared_state() -> None:
    settings = Settings(directory=Path("/srv"), servers=(server(),), broker="amqp://guest@h//")
    assert settings.state_url is None


def test_unknown_names_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    text = TWO_SERVERS + '[streams]\ntransactional = ["secondary"]\n'
    settings = load_settings(write(tmp_path, text), {})
    with pytest.raises(UnknownServer, match='did you mean "primary"'):
        settings.server("primry")
    with pytest.raises(UnknownStream, match='did you mean "transactional"'):
        settings.check_stream("transactionel")
    assert settings.check_stream("promotional") == "promotional"


def test_settings_cannot_be_changed() -> None:
    settings = Settings(directory=Path("/srv"), servers=(server(),))
    with pytest.raises(ValueError, match="frozen"):
        settings.broker = "redis://h"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172800), (7, 7)]
)
def test_durations_are_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration_seconds(text) == seconds


def server() -> Server:
    return Server(name="primary", host="127.0.0.1", port=25, tls="none")
