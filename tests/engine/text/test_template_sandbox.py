"""Untrusted templates: none takes long or much memory, when it is checked or when it runs."""

import gc
import resource
import time
from collections.abc import Iterator
from typing import Any

import pytest

from blora.engine.text.chat_template import check_template, render_template

MAX_SECONDS = 5.0  # CPU time of this thread
MAX_KB = 400 << 10
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "wörld"}]
DOUBLED = "{% set ns = namespace(x='aa') %}{% for _ in range(60) %}{% set ns.x = {} %}{% endfor %}"

HOSTILE = {
    "power of constants": "{{ 9 ** (9 ** 9) }}",
    "power": "{% set x = messages|length + 9 %}{{ x ** (x ** x) }}",
    "powers": "{% set ns = namespace(x=9) %}{% for _ in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "product of constants": "{{ 'a' * 300000000 }}",
    "product": "{{ 300000000 * messages[0].content }}",
    "product of lists": "{{ ([1] * 300000000)|length }}",
    "center of constants": "{{ 'a'|center(1000000000) }}",
    "center": "{{ messages[0]|center(1000000000) }}",
    "method": "{{ messages[0].content.center(1000000000) }}",
    "zeros": "{{ messages[0].content.zfill(1000000000) }}",
    "bytes of an integer": "{{ messages|length.to_bytes(1000000000) }}{{ (5).to_bytes(1000000000) }}",
    "format": "{{ '%1000000000d' % 5 }}",
    "format with a width": "{{ '%*d'|format(1000000000, 5) }}",
    "format method": "{{ '{:1000000000}'.format(5) }}",
    "format method with a width": "{{ '{:{}}'.format(5, 1000000000) }}",
    "sums": DOUBLED.replace("{}", "ns.x + ns.x"),
    "texts side by side": DOUBLED.replace("{}", "ns.x ~ ns.x"),
    "replaced": DOUBLED.replace("{}", "ns.x|replace('a', ns.x)"),
    "replaced by a method": DOUBLED.replace("{}", "ns.x.replace('a', ns.x)"),
    "joined": DOUBLED.replace("{}", "[ns.x, ns.x]|join(ns.x)"),
    "joined by a method": DOUBLED.replace("{}", "ns.x.join([ns.x, ns.x])"),
    "formatted": DOUBLED.replace("{}", "'%s%s' % (ns.x, ns.x)"),
    "blocks": DOUBLED.replace("{% set ns.x = {} %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "lists of lists": DOUBLED.replace("{}", "[ns.x, ns.x]") + "{{ ns.x }}",
    "tuples as keys": DOUBLED.replace("{}", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "dicts": DOUBLED.replace("{}", "dict(a=ns.x, b=ns.x)") + "{{ ns.x|tojson }}",
    "slices": "{% set x = 'a' * 9999999 %}{% for i in range(9999) %}{{ x[i:] }}{% endfor %}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "indented JSON": "{{ messages|tojson(indent=1000000000) }}",
    "decimals": "{{ 5|round(1000000000, 'floor') }}",
    "time": "{{ strftime_now('%1000000000d') }}",
    "times": "{{ strftime_now('%c' * 9999999) }}",
    "sought from the end": "{% set x = 'a' * 9999999 %}{{ x.rfind('b' + x[5000000:]) }}",
    "stripped": "{% set x = 'a' * 9999999 %}{{ x.strip('b' * 5000000) }}",
    "trimmed": "{% set x = 'a' * 9999999 %}{{ x|trim('b' * 5000000) }}",
    "lipsum": "{{ lipsum(1000000000) }}",
    "output": "{% set x = 'a' * 999999 %}{% for _ in range(99999) %}{{ x }}{% endfor %}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_program_is_stopped_soon_and_takes_little(kind: str) -> None:
    started, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception) as caught:
        check_template(HOSTILE[kind])
        render_template(HOSTILE[kind], messages=MESSAGES)
    assert str(caught.value)
    assert time.thread_time() - started < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_KB


class Garbage:
    """An object with a destructor. If the clock runs out inside the destructor, Python drops the error raised there."""

    def __del__(self) -> None:
        time.sleep(0)


def test_a_program_is_stopped_whatever_garbage_is_collected_meanwhile() -> None:
    program = (
        "{% for _ in range(99999) %}{% for _ in range(99999) %}{% set _ = items|map(attribute='x')|list %}{% endfor %}"
    )
    started = time.thread_time()
    with pytest.raises(TimeoutError):
        render_template(program + "{% endfor %}", messages=MESSAGES, items=Collected())
    assert time.thread_time() - started < MAX_SECONDS


class Collected:
    """Makes garbage at every access."""

    def __iter__(self) -> Iterator[Garbage]:
        for _ in range(100):
            Garbage()
        return iter(())


BLOCK = "{% for a in messages %}"
BROKEN = {
    "no end": "{% if %}",
    "loops in loops": BLOCK * 25 + "{% endfor %}" * 25,
    "conditions in conditions": "{% if x %}" * 2000 + "{% endif %}" * 2000,
    "brackets in brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "signs": "{{ " + "-" * 20000 + "1 }}",
    "attributes": "{{ a" + ".a" * 20000 + " }}",
    "a filter that is not there": "{{ 'a'|center(9) }}",
    "large": "{{ x|trim }}" * 20000,
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "large" else ()) for kind in BROKEN]
)
def test_what_is_no_program_is_a_value_error(kind: str) -> None:
    started = time.thread_time()
    with pytest.raises(ValueError, match="the chat template is not valid"):
        check_template(BROKEN[kind])
    assert time.thread_time() - started < MAX_SECONDS


@pytest.mark.slow
def test_a_callback_of_the_garbage_collector_does_not_end_the_watch() -> None:
    """Python drops an error that is raised in such a callback. Hypothesis and profilers register some."""

    def collected(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(collected)
    thresholds = gc.get_threshold()
    gc.set_threshold(1)  # a collection at every other object: the limit passes in a callback, more likely than not
    try:
        with pytest.raises(ValueError, match="2 s"):
            check_template(BROKEN["large"])
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages|map(attribute='content')|join(', ') }}", "hello, wörld"),
        ("{{ messages|join('-', attribute='role') }}", "user-assistant"),
        ("{{ messages[0]|tojson }}{{ [1]|tojson(indent=2) }}", '{"role": "user", "content": "hello"}[\n  1\n]'),
        ("{{ messages[1:]|length }}{{ messages[0].content[1:] }}", "1ello"),
        ("{{ '%s %03d' % ('a', 5) }}{{ '%s'|format('b') }}{{ '{:>3}'.format(7) }}", "a 005b  7"),
        ("{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ 1 ~ 'a' ~ none }}{{ 7 % 4 }}", "1024abab[1, 2]1aNone3"),
        ("{{ 'a\nb'|indent(2) }}{{ 'a-b'|replace('-', '+') }}{{ 'a-b'.replace('-', '') }}", "a\n  ba+bab"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ '-'.join(['a', 'b']) }}", "a1a-b"),
        ("{% set ns = namespace(x=[]) %}{% for m in messages %}{% set ns.x = ns.x + [m.role] %}{% endfor %}{{ ns.x }}",
         "['user', 'assistant']"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ f(missing) }}{{ 1.26|round(1) }}", "<a><>1.3"),
        ("{{ '</think> b'.split('</think>')[-1].lstrip() }}{{ messages[0].get('tools') is none }}", "bTrue"),
    ],
)  # fmt: skip
def test_what_templates_of_models_do_is_as_ever(template: str, text: str) -> None:
    check_template(template)
    assert render_template(template, messages=MESSAGES) == text


def test_a_long_conversation_is_rendered() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "word " * 100}] * 1000
    template = "{% set ns = namespace(t='') %}{% for m in messages %}{% if loop.index == messages|length %}{% endif %}"
    template += "{{ m.role ~ '\n' + m['content'] | trim }}{% endfor %}"
    assert len(render_template(template, messages=messages)) > 400_000
