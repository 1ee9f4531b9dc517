"""The text part of a mail, made from its HTML part where the campaign has none."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jinja2
from inscriptis import get_text
from inscriptis.css_profiles import STRICT_CSS_PROFILE
from inscriptis.html_properties import Display
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_element import HtmlElement
from inscriptis.model.tag import CustomHtmlTagHandlerMapping

from campaigns.errors import TemplateError
from campaigns.template import Template, merge_values

__all__ = ["TextPart", "text_from_html", "text_part"]


def _start_cell(state: Any, _: Mapping[str, str]) -> None:
    state.tags[-1].write(" ")


def _nothing(*_: object) -> None:
    """Tables in mails are mostly layout: they are read row by row, not drawn as grids."""


_TABLE = ("table", "tr", "td", "th")
_BLOCKS = ("table", "tr", "caption", "section", "center", "form", "fieldset", "option", "dl", "dt", "dd")
_CONFIG = ParserConfig(
    css={**STRICT_CSS_PROFILE, **{tag: HtmlElement(display=Display.block) for tag in _BLOCKS}},
    display_links=True,
    custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(
        start_tag_mapping={"table": _nothing, "tr": _nothing, "td": _start_cell, "th": _start_cell},
        end_tag_mapping=dict.fromkeys(_TABLE, _nothing),
    ),
)
# What means something else in HTML than in text, so that the text cannot be made from the template.
_HTML_ONLY = re.compile(r"\|\s*(?:safe|e|escape|forceescape|tojson|striptags)\b")
_EDGES = ("block_begin", "block_end", "variable_begin", "variable_end")
_SIGNS = ("{{", "{%", "{#")


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
    try:
        derived = _text_template(html_source)
    except TemplateError:
        derived = None
    if derived is None or not _agrees(html_source, derived):
        return _FromRendered()
    return _FromTemplate(derived)


def _text_template(html_source: str) -> Template | None:
    """Return the text template, or None where tags of the template would be lost, moved or misread."""
    marks = _Marks(html_source)
    text = text_from_html(marks.page)
    literal = marks.pattern.sub("", text)
    if marks.unfit or not marks.in_place(text) or any(sign in literal for sign in (*_SIGNS, marks.mark)):
        return None
    return Template(marks.restored(text), "text")


class _Marks:
    """The page with a word in the place of each Jinja tag, which lives through the conversion to text."""

    def __init__(self, source: str) -> None:
        self.mark = "qzx"
        while self.mark in source.lower():
            self.mark += "q"
        self.pattern = re.compile(rf"{self.mark}(\d+)z")
        self.tags: list[str] = []
        self.unfit = False
        self.page = "".join(self._pieces(source))

    def _pieces(self, source: str) -> Iterable[str]:
        tag: list[str] = []
        for _, kind, value in jinja2.Environment(autoescape=True).lex(source):
            if kind == "data":
                yield value
            elif kind.startswith("comment"):
                continue
            else:
                # Blanks that `{%-` takes away are gone from the page; in the text they would be other ones.
                tag.append(value.strip().strip("-+") if kind in _EDGES else value)
                self.unfit = self.unfit or kind.startswith("raw")
            if kind in ("variable_end", "block_end"):
                yield f"{self.mark}{len(self.tags)}z"
                self.tags.append("".join(tag))
                self.unfit = self.unfit or _HTML_ONLY.search(self.tags[-1]) is not None
                tag = []

    def in_place(self, text: str) -> bool:
        """Tell whether all block tags are there, in order, and every expression between the same two."""
        blocks_before = self._blocks_before()
        seen = 0
        for number in map(int, self.pattern.findall(text)):
            if blocks_before[number] != seen:
                return False
            seen += self._is_block(number)
        return seen == sum(map(self._is_block, range(len(self.tags))))

    def _is_block(self, number: int) -> bool:
        return self.tags[number].startswith("{%")

    def _blocks_before(self) -> list[int]:
        before, blocks = [], 0
        for number in range(len(self.tags)):
            before.append(blocks)
            blocks += self._is_block(number)
        return before

    def restored(self, text: str) -> str:
        """Put the Jinja tags back; a line that holds block tags alone leaves no empty line."""
        lines = []
        for line in text.splitlines(keepends=True):
            found = self.pattern.fullmatch(line.strip())
            alone = found is not None and self._is_block(int(found[1]))
            lines.append(line.strip() if alone else line)
        return self.pattern.sub(lambda found: self.tags[int(found[1])], "".join(lines))


def _agrees(html_source: str, derived: Template) -> bool:
    """Hold the text made from the template against the text of a page, for a full and an empty recipient."""
    page = Template(html_source, "html", html=True)
    for filler in ("Q{}", ""):
        fields = {name: filler.format(number) for number, name in enumerate(sorted(page.variables))}
        try:
            expected = text_from_html(page.render(merge_values("q@example.com", fields, {})))
            found = _tidy(derived.render(merge_values("q@example.com", fields, {})))
        except TemplateError:
            continue
        if expected.split() != found.split():
            return False
    return True
