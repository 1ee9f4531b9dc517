import re

from campaigns.local.log_line import log_line


def line(text: str) -> str:
    return log_line("primary-1", text, now=0.0, width=10)


def test_a_celery_line_keeps_its_time_and_loses_its_brackets():
    text = "[2025-01-02 03:04:05,678: WARNING/MainProcess] lease lost"
    assert line(text) == "03:04:05 primary-1   WARNING lease lost"


def test_an_information_line_does_not_say_that_it_is_one():
    assert line("[2025-01-02 03:04:05,678: INFO/MainProcess] ready") == "03:04:05 primary-1   ready"


def test_a_tornado_line_reads_like_the_others():
    assert line("[I 250102 03:04:05 command:168] Visit me") == "03:04:05 primary-1   Visit me"


def test_any_other_line_gets_the_time_it_came():
    assert re.fullmatch(r"\d\d:\d\d:\d\d primary-1   Traceback", line("Traceback"))
