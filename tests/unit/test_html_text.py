"""The text made from HTML: the same from the template and from the page, or else from the page."""

# ruff: noqa: E501 - a template is read on one line

from pathlib import Path

import pytest

from campaigns.html_text import text_from_html, text_part
from campaigns.template import Template, merge_values

NEWSLETTER = Path(__file__).parents[2] / "campaigns" / "demo" / "newsletter.html"
FROM_TEMPLATE = {
    "fields": "<p>Hi {{ name }},<br>from {{ city }}</p><hr><p>a &amp; b &lt; c&nbsp;d</p>",
    "a condition": "<p>Hi</p>\n{% if none %}\n<p>No</p>\n{% else %}\n<p>Yes {{ city }}</p>\n{% endif %}\n<p>Bye</p>",
    "a loop": "<ul><li>a</li>{% for i in range(2) %}<li>i {{ i }}</li>{% endfor %}<li>b</li></ul><p>c</p>",
    "rows": "<table>{% for i in range(3) %}<tr><td>{{ i }}</td><td>{{ name }}</td></tr>{% endfor %}</table>",
    "conditional rows": "<table><tr><td>a</td></tr>{% if none %}<tr><td>No</td></tr>{% endif %}<tr><td>b</td></tr></table>",
    "layout tables": "<table><tr><td><table><tr><td><h1>T</h1><p>p {{ name }}</p></td></tr></table></td><td>s</td></tr></table>",
    "cut blanks": "<table><tr><td>x</td>\n<td>{%- if name %} a {% endif -%}</td>\n<td>y</td></tr></table>",
    "a link": "<p><a href='https://x.example/{{ city | urlencode }}'>to {{ name }}</a></p>",
    "a conditional link": "{% if city %}<a href='https://x.example'>{% endif %}text{% if city %}</a>{% endif %}",
    "a macro": "{% macro m(t) %}<p>{{ t }}</p>{% endmacro %}{{ m('a<b') }}",
    "a comment": "<!--[if mso]><p>{{ name }}</p><![endif]--><p>{# {{ nobody }} #}q</p>",
    "styles": "<style>p { color: {{ city }} }</style><title>{{ name }}</title>t",
    "signs in strings": "<p>a{{ 'x}}y' }}b {% if '%}' %}t{% endif %}</p>",
    "a prolog": "<?xml version='1.0' encoding='UTF-8'?><html><body>x {{ name }}</body></html>",
    "hidden text": "<div style='display:none'>pre {{ name }}</div><p>b</p>",
    "nothing": "",
}
FROM_PAGE = {
    "markup in a field": "<p>{{ html | safe }}</p>",
    "numbered items": "<ol>{% for i in range(3) %}<li>{{ i }}</li>{% endfor %}</ol>",
    "a condition in a comment": "<!--{% if name %}a{% endif %}--><p>t</p>",
    "a condition in an address": "<a href='{% if none %}http://a{% else %}http://b{% endif %}'>go {{ name }}</a>",
    "raw text": "{% raw %}{{ x }}{% endraw %}",
    "raw text without signs": "{% raw %}x{% endraw %} {{ name }}",
    "signs made of entities": "<p>&#123;&#123; x &#125;&#125; {{ name }}</p>",
}


def parts(source: str) -> tuple[str, str, str]:
    """Return how the text part is made, the text part, and the text of the recipient's page."""
    fields = {"name": "Zoë", "city": "Rom", "none": "", "html": "<b>bold</b> &amp;"}
    html = Template(source, "html", html=True).render(merge_values("zoe@example.com", fields, {}))
    part = text_part(source)
    text = part.render(merge_values("zoe@example.com", fields, {}), html)
    return type(part).__name__, text, text_from_html(html)


@pytest.mark.parametrize("source", FROM_TEMPLATE.values(), ids=FROM_TEMPLATE.keys())
def test_the_text_is_made_once_from_the_template_and_is_that_of_the_page(source: str) -> None:
    how, text, page = parts(source)
    assert how == "_FromTemplate"
    assert [line.split() for line in text.splitlines()] == [line.split() for line in page.splitlines()]


@pytest.mark.parametrize("source", FROM_PAGE.values(), ids=FROM_PAGE.keys())
def test_where_the_template_would_mislead_the_page_is_read(source: str) -> None:
    how, text, page = parts(source)
    assert how == "_FromRendered"
    assert text == page


def test_the_demos_newsletter_is_made_once() -> None:
    assert type(text_part(NEWSLETTER.read_text())).__name__ == "_FromTemplate"


def test_fields_are_not_escaped_in_the_text() -> None:
    part = text_part("<p>{{ a }}</p>")
    assert part.render(merge_values("a@example.com", {"a": "Tom & <b> &amp;"}, {}), "") == "Tom & <b> &amp;\n"


def test_the_text_is_laid_out_for_reading() -> None:
    html = (
        "<h1>Title</h1><ul><li>one<li>two</ul><table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>"
    )
    assert text_from_html(html) == "Title\n\n  * one\n  * two\na b\nc\n"
