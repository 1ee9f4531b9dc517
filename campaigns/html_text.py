"""The text part of a mail, made from its HTML part where the campaign has none."""

import re
from collections.abc import Mapping
from typing import Protocol

import jinja2
from inscriptis import get_text
from inscriptis.css_profiles import RELAXED_CSS_PROFILE
from inscriptis.model.config import ParserConfig

from campaigns.template import Template

__all__ = ["TextPart", "text_from_html", "text_part"]

_CONFIG = ParserConfig(css=RELAXED_CSS_PROFILE, display_links=True)
# What means something else in HTML than in text, so that the text cannot be made from the template.
_HTML_ONLY = re.compile(r"\|\s*(?:safe|e|escape|forceescape|tojson|striptags)\b")


class TextPart(Protocol):
    """What makes a recipient's text part, from the merge values or from the HTML part made of them."""

    def render(self, values: Mapping[str, object], html: str) -> str: ...


class _FromTemplate:
    """The HTML template was turned into a text template, once."""

    def __init__(self, template: Template) -> None:
        self._template = template

    def render(self, values: Mapping[str, object], html: str) -> str:
        return _tidy(self._template.render(values))


class _FromRendered:
    """Each recipient's HTML is turned into text: right for every template, but milliseconds a mail."""

    def render(self, values: Mapping[str, object], html: str) -> str:
        return text_from_html(html)


def text_from_html(html: str) -> str:
    """Return the text of a page: blocks apart, links after their text as `[text](address)`."""
    return _tidy(get_text(html, _CONFIG))


def _tidy(text: str) -> str:
    while " \n" in text:
        text = text.replace(" \n", "\n")
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip("\n") + "\n"


def text_part(html_source: str) -> TextPart:
    """Return the text part for an HTML template, made from the template itself where that is exact."""
    derived = _text_template(html_source)
    return _FromRendered() if derived is None else _FromTemplate(derived)


def _text_template(html_source: str) -> Template | None:
    """Return the text template, or None where tags of the template would be lost, moved or misread."""
    found = _placeholders(html_source)
    if found is None:
        return None
    marked, originals, mark = found
    text = _tidy(get_text(marked, _CONFIG))
    order = [int(number) for number in re.findall(rf"{mark}(\d+)z", text)]
    blocks = [number for number, original in enumerate(originals) if original.startswith("{%")]
    if [number for number in order if number in set(blocks)] != blocks:
        return None
    literal = re.sub(rf"{mark}\d+z", "", text)
    if any(sign in literal for sign in ("{{", "{%", "{#", mark)):
        return None
    return Template(re.sub(rf"{mark}(\d+)z", lambda match: originals[int(match[1])], text), "text")


def _placeholders(source: str) -> tuple[str, list[str], str] | None:
    """Put a word in the place of each Jinja tag; return the page, the tags and what the words begin with."""
    mark = "qzx"
    while mark in source.lower():
        mark += "q"
    pieces: list[str] = []
    originals: list[str] = []
    tag: list[str] = []
    for _, kind, value in jinja2.Environment(autoescape=True).lex(source):
        if kind.startswith(("raw", "comment", "linestatement", "linecomment")):
            if kind.startswith("raw"):
                return None
        elif kind == "data":
            pieces.append(value)
        else:
            tag.append(value)
            if kind in ("variable_end", "block_end"):
                pieces.append(f"{mark}{len(originals)}z")
                originals.append("".join(tag))
                tag = []
    if any(_HTML_ONLY.search(original) for original in originals):
        return None
    return "".join(pieces), originals, mark
