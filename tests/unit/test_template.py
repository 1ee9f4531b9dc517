"""Templates: what they can name, what they cannot do, and how their mistakes are reported."""

# ruff: noqa: E501 - a template is read on one line

import resource
import threading
import time

import pytest

from campaigns.errors import TemplateError
from campaigns.template import Template, alias_of, merge_values

FIELDS = {"First Name": "Zoë <b>", "city": "Köln", "empty": ""}


def rendered(source: str, *, html: bool = False, **defaults: str) -> str:
    values = merge_values("zoe@example.com", FIELDS, defaults)
    return Template(source, "html" if html else "text", html=html).render(values)


def mistake(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        rendered(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ city }}", "Köln"),
        ("{{ fields['First Name'] }}", "Zoë <b>"),
        ("{{ first_name }}", "Zoë <b>"),
        ("{{ fields.city }} {{ fields.get('city') }}", "Köln Köln"),
        ("{{ email }} {{ fields.email }}", "zoe@example.com zoe@example.com"),
        ("[{{ empty }}]", "[]"),
        ("{% if empty %}a{% else %}b{% endif %}", "b"),
        ("{{ first_name.split(' ')[0] | upper }}", "ZOË"),
        (
            "{% for word in ['x', 'y'] %}{{ loop.index }}{{ word }}{{ loop.last }};{% endfor %}",
            "1xFalse;2yTrue;",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}",
            "8",
        ),
        ("{% macro m(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call m('1') %}2{% endcall %}", "<12>"),
        (
            "{{ '%05.1f' | format(3.14159) }} {{ 2.567 | round(1) }} {{ 'a-b' | replace('-', '+') }}",
            "003.1 2.6 a+b",
        ),
        ("{{ ['a', 'b'] | join(', ') }} {{ 'a' ~ 1 ~ none }} {{ 7 % 4 + 2 ** 3 }}", "a, b a1 11"),
        ("{{ range(4) | map('string') | select('in', ['1', '3']) | join }}", "13"),
    ],
)
def test_templates_name_fields_and_reckon_with_them(source: str, text: str) -> None:
    assert rendered(source) == text


def test_values_are_escaped_in_html_alone() -> None:
    assert rendered("<p>{{ first_name }}", html=True) == "<p>Zoë &lt;b&gt;"
    assert rendered("<p>{{ '<' ~ first_name }}", html=True) == "<p>&lt;Zoë &lt;b&gt;"
    assert rendered("<p>{{ first_name }}") == "<p>Zoë <b>"


def test_a_default_stands_in_for_a_missing_field_and_not_for_an_empty_one() -> None:
    assert rendered("{{ nick }}[{{ empty }}]", nick="you", empty="full") == "you[]"


def test_a_column_comes_before_a_default_under_the_same_alias() -> None:
    assert rendered("{{ first_name }}", first_name="friend") == "Zoë <b>"


def test_no_column_can_replace_the_address() -> None:
    values = merge_values("zoe@example.com", {"email": "eve@example.com"}, {"email": "eve@example.com"})
    assert (
        Template("{{ email }} {{ fields.email }}", "text").render(values) == "zoe@example.com zoe@example.com"
    )


@pytest.mark.parametrize(
    ("column", "alias"),
    [
        ("First Name", "first_name"),
        ("E-Mail 2", "e_mail_2"),
        ("Straße", "straße"),
        ("2nd", None),
        ("if", None),
    ],
)
def test_a_column_has_an_alias_if_that_is_a_name(column: str, alias: str | None) -> None:
    assert alias_of(column) == alias


def test_an_alias_of_two_columns_is_nobodys() -> None:
    template = Template("{{ first_name }}", "text")
    assert template.missing(["First Name", "First-Name"]) == ["first_name"]
    assert template.missing(["First Name", "First-Name", "first_name"]) == []


def test_the_variables_of_a_template_are_known_before_it_is_rendered() -> None:
    source = "{% for i in range(2) %}{{ i }}{{ a }}{% endfor %}{{ fields['B c'] }}{% set d = 1 %}{{ d }}{{ email }}"
    template = Template(source, "text")
    assert template.variables == {"a", "B c"}
    assert template.missing(["email", "B c"], ["a"]) == []
    assert template.missing(["B  c", "A"]) == ["B c"]


def test_a_missing_column_is_named_with_what_there_is() -> None:
    with pytest.raises(TemplateError) as caught:
        Template("{{ frist_name }}", "subject").check(["email", "First Name"])
    assert str(caught.value) == (
        "The subject template uses `frist_name`, and the list has no such column (columns: `email`, `First Name`)."
        " Is `first_name` meant? Add the column, correct the template"
        " (`{{ fields.get('frist_name', 'instead') }}` can do without it),"
        " or give the campaign a default (`defaults=` of `Campaign.create`, in Python)."
    )


def test_a_test_for_definedness_does_not_make_a_column_optional() -> None:
    assert Template("{% if a is defined %}{{ b | default('') }}{% endif %}", "text").missing([]) == ["a", "b"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a\n{{ nobody }}", "The text template, line 2: 'nobody' is undefined: add the column"),
        ("a\n\n{% if %}", "The text template, line 3: Expected an expression"),
        ("{% if city %}", "line 1: Unexpected end of template"),
        (
            "a\nb {{ First Name }}",
            'Name\'. A column First Name is written {{ first_name }} or {{ fields["First Name"] }}.',
        ),
        ("{{ First Name | title }}", "A column First Name is written {{ first_name }}"),
        ("{{ city | reversed }}", "line 1: No filter named 'reversed'"),
        ("{{ city.nobody }}", "line 1: 'str object' has no attribute 'nobody'"),
        ("\n{{ 1 / 0 }}", "line 2: division by zero"),
        ("{{ fields }}", "a dict cannot be printed"),
        ("{{ [city] }}", "a list cannot be printed"),
        ("{{ 'a' % 1 }}", "use the filter format"),
        ("{{ city.replace('a', 'b') }}", "`replace` is not available on a str: use a filter"),
        ("{% include 'a.html' %}", "`include` is not available"),
        ("{% import 'a.html' as a %}", "`import` is not available"),
        ("{% from 'a.html' import a %}", "`from ... import` is not available"),
        ("{% extends 'a.html' %}", "`extends` is not available"),
        ("{% block a %}{% endblock %}", "`block` is not available"),
        ("{% autoescape false %}{{ city }}{% endautoescape %}", "`autoescape` is not available"),
        ("{% for a in [1] recursive %}{{ loop([2]) }}{% endfor %}", "recursive loops are not available"),
    ],
)
def test_a_mistake_is_reported_with_part_and_line(source: str, said: str) -> None:
    assert said in mistake(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ city.__class__ }}",
        "{{ fields.__class__.__mro__ }}",
        "{{ fields['__class__'].mro() }}",
        "{{ range.__globals__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ namespace.__init__ }}",
        "{{ fields | attr('__class__') }}",
        "{{ [city] | map(attribute='__class__') | list | string }}",
        "{{ '{0.__class__}'.format(city) }}",
        "{{ 'x'.format_map(fields) }}",
        "{{ fields.clear() }}",
        "{{ fields.update(a=1) }}",
        "{{ [1].append(2) }}",
        "{{ self.__dict__ }}",
        "{{ cycler }}",
        "{{ lipsum() }}",
        "{{ dict }}",
        "{{ 'abc' | random }}",
        "{% macro m() %}{% endmacro %}{{ m._func }}",
        "{% macro m() %}{% endmacro %}{{ m.name }}",
        "{% for i in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ namespace(a=nobody) }}",
        "{{ [nobody] | string }}",
    ],
)
def test_a_template_sees_nothing_but_the_fields(source: str) -> None:
    mistake(source)


HUGE = {
    "a product": "{{ 'a' * 10**9 }}",
    "a reversed product": "{{ 10**9 * 'a' }}",
    "a list": "{{ ([1] * 10**9) | length }}",
    "a power": "{{ 9**9**9 }}",
    "a power of a variable": "{% set a = 10 %}{{ a ** 10**8 }}",
    "a number that grows": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a rounding": "{{ 5 | round(-10**9) }}",
    "a width": "{{ '%999999999d' | format(1) }}",
    "a given width": "{{ '%*d' | format(999999999, 1) }}",
    "a width in a named field": "{{ '%(a)999999999d' | format(a=1) }}",
    "a method": "{{ 'a'.ljust(10**9) }}",
    "a format": "{{ '{:999999999}'.format(1) }}",
    "tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "a filter that is not there": "{{ 'a' | center(10**9) }}",
    "a replacement": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "a joint": "{{ range(99999) | join('a' * 99999) }}",
    "a range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(99999) if i > 99999 %}{% endfor %}" * 9,
    "a loop over text": "{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "a loop over kept text": "{% set a %}{% for i in range(99999) %}"
    + "x" * 999
    + "{% endfor %}{% endset %}",
    "filters in a loop": "{% for i in range(99999) %}{% set a = i | string | length %}{% endfor %}",
    "a macro in a macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "macros that double": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "macros that write": "{% macro m() %}"
    + "x" * 99999
    + "{% endmacro %}{% for i in range(99999) %}{% set a = m() %}{% endfor %}",
    "text doubled by ~": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "text doubled by +": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "text doubled by a block": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% endfor %}",
    "text doubled by a filter": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "lists in lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
    "maps in maps": "{% set n = namespace(x={}) %}{% for i in range(99) %}{% set n.x = {1: n.x, 2: n.x} %}{% endfor %}",
    "namespaces in namespaces": "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set m = namespace() %}"
    "{% set m.a = n.x %}{% set m.b = n.x %}{% set n.x = m %}{% endfor %}{{ [n.x] | string }}",
    "long comparisons": "{% set a = 'a' * 99999 %}{% for i in range(99999) %}{% if a == a ~ '' %}{% endif %}{% endfor %}",
    "long searches": "{% set a = 'a' * 99999 %}{% for i in range(99999) if 'ab' in a %}{% endfor %}",
    "long slices": "{% set a = 'a' * 99999 %}{% for i in range(99999) %}{% set b = a[1:] %}{% endfor %}",
    "long methods": "{% set a = 'a' * 99999 %}{% for i in range(99999) %}{% set b = a.upper() %}{% endfor %}",
    "long lists": "{% for i in range(99999) %}{% set a = range(99999) | list %}{% endfor %}",
    "filters upon filters": "{{ range(99999) | list"
    + " | map('string') | select | list" * 99
    + " | length }}",
    "tests of long texts": "{% set a = 'a' * 99999 %}{% for i in range(99999) %}{% if a is upper %}{% endif %}{% endfor %}",
    "comments to strip": "{{ ('<!--' * 99999) | striptags }}",
    "brackets": "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "a long number": "{{ " + "9" * 9999 + " }}",
    "tags in tags": "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "a text longer than a part may be": "x" * 1_500_000,
    "a long template": "x" * 3_000_000,
}


@pytest.mark.parametrize("source", HUGE.values(), ids=HUGE.keys())
def test_work_and_output_are_bounded(source: str) -> None:
    started, grown = time.process_time(), peak_bytes()
    mistake(source)
    assert time.process_time() - started < 3
    assert peak_bytes() - grown < 100_000_000


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_each_rendering_has_its_own_budget() -> None:
    template = Template("{% for i in range(60000) %}{% endfor %}ok", "text")
    for _ in range(3):
        assert template.render(merge_values("a@example.com", {}, {})) == "ok"


def test_the_parts_of_one_mail_share_a_budget() -> None:
    template = Template("{% for i in range(60000) %}{% endfor %}ok", "text")
    values = merge_values("a@example.com", {}, {})
    template.render(values)
    with pytest.raises(TemplateError):
        template.render(values)


def test_a_template_is_rendered_by_several_threads_at_once() -> None:
    template = Template("{% for i in range(50) %}{{ fields.n }}{% endfor %}", "text")
    wrong: list[str] = []

    def render(number: int) -> None:
        for _ in range(50):
            text = template.render(merge_values("a@example.com", {"n": str(number)}, {}))
            if text != str(number) * 50:
                wrong.append(text)

    threads = [threading.Thread(target=render, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
