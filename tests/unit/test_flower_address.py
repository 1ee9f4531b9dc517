"""Where Flower listens, and what it need not say."""

import logging
from pathlib import Path

import pytest
from tornado.options import OptionParser

from workers.flower import START_SECONDS, UntilWorkersAnswer, keep_flower_on_loopback


@pytest.fixture
def options() -> OptionParser:
    parser = OptionParser()
    parser.define("address", default="", type=str)
    parser.define("unix_socket", default="", type=str)
    parser.define("auth", default="", type=str)
    parser.define("basic_auth", default=None, type=str, multiple=True)
    keep_flower_on_loopback(parser)
    return parser


def read(options: OptionParser, *arguments: str) -> str:
    options.parse_command_line(["flower", *arguments])
    return str(options.address)


def test_flower_without_authentication_listens_on_loopback(options: OptionParser):
    assert read(options) == "127.0.0.1"


def test_flower_without_authentication_stays_on_loopback_whatever_address_is_asked(options: OptionParser):
    assert read(options, "--address=0.0.0.0") == "127.0.0.1"


def test_another_loopback_address_is_kept(options: OptionParser):
    assert read(options, "--address=::1") == "::1"


@pytest.mark.parametrize("authentication", ["--basic_auth=ops:secret", "--auth=.*@ops.example"])
def test_flower_with_authentication_listens_where_it_is_told(options: OptionParser, authentication: str):
    assert read(options, "--address=0.0.0.0", authentication) == "0.0.0.0"


def test_authentication_in_flowers_own_file_counts(options: OptionParser, tmp_path: Path):
    file = tmp_path / "flowerconfig.py"
    file.write_text("basic_auth = ['ops:secret']\n")
    assert read(options, "--address=192.0.2.1") == "127.0.0.1"
    options.parse_config_file(str(file), final=False)
    assert read(options, "--address=192.0.2.1") == "192.0.2.1"


def test_questions_that_nobody_answers_are_no_warning_while_the_workers_start():
    now = 100.0
    rule = UntilWorkersAnswer(monotonic=lambda: now)
    unanswered = logging.makeLogRecord({"msg": "Inspect method %s failed", "args": ("stats",)})
    failed = logging.makeLogRecord({"msg": "Inspect method %s failed: %s", "args": ("stats", "no broker")})
    assert (rule.filter(unanswered), rule.filter(failed)) == (False, True)
    now += START_SECONDS
    assert rule.filter(unanswered)
