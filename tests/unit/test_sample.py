"""The demo's list of people who do not exist."""

import io
import unicodedata
from importlib.resources import files

from campaigns.address import normalise
from campaigns.demo.sample import SAMPLE_SIZE, sample, write_csv


def test_the_shipped_list_is_what_the_generator_makes():
    made = io.StringIO()
    write_csv(made)
    assert (files("campaigns.demo") / "recipients.csv").read_text(encoding="utf-8") == made.getvalue()


def test_the_list_is_long_enough_and_names_nobody_twice():
    keys = {normalise(row["email"]).dedupe_key for row in sample()}
    assert len(keys) == SAMPLE_SIZE >= 2000


def test_every_address_is_in_a_domain_that_cannot_exist():
    assert {normalise(row["email"]).domain.rpartition(".")[2] for row in sample()} == {"example"}


def test_the_names_are_in_several_scripts():
    scripts = {unicodedata.name(row["first_name"][0]).split()[0] for row in sample(200)}
    assert scripts >= {
        "LATIN",
        "CYRILLIC",
        "GREEK",
        "HEBREW",
        "ARABIC",
        "DEVANAGARI",
        "CJK",
        "HANGUL",
        "THAI",
    }


def test_a_longer_list_begins_with_the_shorter_one():
    assert list(sample(50))[:20] == list(sample(20))
