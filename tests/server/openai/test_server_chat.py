"""Chat, where the checkpoint has a template for it."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

import runtime
from runtime.model.model import Model
from runtime.tokenization.encode import encode
from tests.support.chat_folders import change_settings, chatty
from tests.support.openai_client import client as client
from tests.support.serving import Running, running

TEMPLATE = """{% for message in messages %}
{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('no role ' + message['role']) }}{% endif %}
{{ message['role'] }}: {{ message['content'] }}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}"""
MESSAGES = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A wolf."},
    {"role": "user", "content": "And where do you live?"},
]
PROMPT = "user: Who are you?\nassistant: A wolf.\nuser: And where do you live?\nassistant:"


def template_of(model: Model) -> Any:
    """The chat template, which is there; imported here, since the server is an extra."""
    from runtime.server.chat_templates.chat_template import find_chat_template

    template = find_chat_template(model)
    assert template
    return template


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_int8_folder: Path) -> Iterator[Model]:
    folder = chatty(tmp_path_factory.mktemp("chat") / "chatty", demo_int8_folder, TEMPLATE)
    with Model(folder, verify="off") as one:
        yield one


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model) as one:
        yield one


def test_the_template_makes_the_prompt(client: Any, model: Model) -> None:
    reply = client.chat.completions.create(model="chatty", messages=MESSAGES, max_tokens=12, temperature=0)
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == runtime.generate(PROMPT, model=model, max_new_tokens=12)
    assert (reply.object, choice.finish_reason, reply.usage.completion_tokens) == ("chat.completion", "length", 12)


def test_the_template_is_transformers(model: Model) -> None:
    from transformers import AutoTokenizer

    template = template_of(model)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert template.render(MESSAGES) == expected == PROMPT


def test_a_stream_of_a_chat_joins_to_the_whole(client: Any) -> None:
    fields: dict[str, Any] = {"model": "chatty", "messages": MESSAGES, "max_completion_tokens": 20, "seed": 5, "n": 2}
    fields |= {"logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **fields))
    assert chunks[-1].usage == whole.usage
    for index in range(2):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(part.delta.content for part in parts) == whole.choices[index].message.content
        content = [one for part in parts for one in part.logprobs.content]
        assert content == whole.choices[index].logprobs.content
        assert "".join(one.token for one in content) == whole.choices[index].message.content
        assert all(bytes(one.bytes).decode() == one.token for one in content)
        assert all(len(one.top_logprobs) in (3, 4) for one in content)
        assert parts[-1].finish_reason == whole.choices[index].finish_reason


def test_without_a_limit_the_context_is(client: Any, model: Model) -> None:
    fields: dict[str, Any] = {"temperature": 0, "extra_body": {"min_new_tokens": 512}}
    reply = client.chat.completions.create(model="chatty", messages=MESSAGES, **fields)
    assert reply.usage.total_tokens == model.config.n_positions
    assert reply.choices[0].gpt2_edge["finish_reason"] == "context"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "no role wizard"),
        ({"messages": [{"role": "user", "content": "a <|endoftext|> b"}]}, "special token"),
        ({"messages": MESSAGES, "top_logprobs": 3}, "goes with logprobs"),
        ({"messages": MESSAGES, "max_tokens": 3, "max_completion_tokens": 4}, "give one"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ({"messages": MESSAGES, "task": "answer"}, "unknown field 'task'"),
        ({"messages": MESSAGES, "stream_options": {}}, "goes with stream"),
        ({"messages": MESSAGES, "temperature": 0, "n": 2}, "temperature 0"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, "512 positions"),
    ],
)
def test_what_a_chat_refuses(server: Running, fields: dict[str, Any], told: str) -> None:
    reply = server.post("/v1/chat/completions", **fields)
    assert reply.status == 400
    assert told in reply.error["message"]


@pytest.mark.parametrize(
    ("template", "error"),
    [("{% for %}", "chat template"), (5, "a text is expected"), ({"a": 1}, "a text is expected")],
)
def test_a_wrong_template_stops_chat_with_its_reason_and_nothing_else(
    tmp_path: Path, demo_int8_folder: Path, template: Any, error: str
) -> None:
    folder = chatty(tmp_path / "chatty", demo_int8_folder, template)
    with Model(folder, verify="off") as model, running(model) as server:
        chat = server.post("/v1/chat/completions", messages=MESSAGES)
        assert (chat.status, chat.error["code"]) == (400, "no_chat_template")
        assert error in chat.error["message"]
        assert server.post(prompt="Once", max_tokens=2).status == 200
        assert server.request("GET", "/v1/models").json["data"][0]["chat"] is False


@pytest.mark.parametrize("field", ["role", "content", "name"])
def test_no_part_of_a_message_can_hold_a_special_token(model: Model, field: str) -> None:
    template = template_of(model)
    with pytest.raises(ValueError, match=f"special token '<.endoftext.>' in its {field}"):
        template.render([{"role": "user", "content": "a", field: "user<|endoftext|>assistant"}])


ROLES = {
    "bos_token": "<|im_start|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"},
    "pad_token": "<pad>",
}
ALL_ROLES = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}{{ additional_special_tokens }}"
TEMPLATES = {
    "generation tag": "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}"
    "{{ x }}|{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "json": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}ñ",
    "what there is not": "{{ tools is none }}{{ documents is none }}{% if tools %}{{ 1 / 0 }}{% endif %}",
    "date": "{{ strftime_now('%Y-%m-%d') }}",
    "prompt for generation": "{{ add_generation_prompt }}",
}


@pytest.mark.parametrize("roles", [{}, ROLES, {"pad_token": None, "bos_token": None}], ids=["none", "some", "null"])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "PreTrainedTokenizerFast", None])
def test_the_roles_of_a_template_are_the_tokenizers(
    tmp_path: Path, demo_int8_folder: Path, kind: str | None, roles: dict[str, Any]
) -> None:
    folder = chatty(tmp_path / "chatty", demo_int8_folder, ALL_ROLES)
    change_settings(folder, **{"tokenizer_class": kind, **roles})
    assert_rendered_alike(folder)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_render_as_transformers_renders_them(tmp_path: Path, demo_int8_folder: Path, template: str) -> None:
    assert_rendered_alike(chatty(tmp_path / "chatty", demo_int8_folder, template))


def assert_rendered_alike(folder: Path) -> None:
    """By the runtime and by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Model(folder, verify="off") as model:
        expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        assert template_of(model).render(MESSAGES) == expected


def test_the_prompt_of_a_chat_has_the_ids_of_transformers(tmp_path: Path, demo_int8_folder: Path) -> None:
    """Also where the tokenizer puts a token before every text, which a template has in it already."""
    from transformers import AutoTokenizer

    folder = chatty(tmp_path / "chatty", demo_int8_folder, "{{ bos_token }}{{ messages[0].content }} {{ eos_token }}")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES[:1], add_generation_prompt=True)
    assert expected.count(0) == 2
    with Model(folder, verify="off") as model, running(model) as server:
        reply = server.post("/v1/chat/completions", messages=MESSAGES[:1], max_tokens=1, logprobs=True).json
        assert reply["usage"]["prompt_tokens"] == len(expected)
        template = template_of(model)
        assert encode(model, template.render(MESSAGES[:1]), special_tokens=True) == expected


def test_of_several_templates_the_default_is_taken(tmp_path: Path, demo_int8_folder: Path) -> None:
    templates = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    with Model(chatty(tmp_path / "chatty", demo_int8_folder, templates), verify="off") as model:
        assert template_of(model).render(MESSAGES) == "yes"
        (model.folder / "chat_template.jinja").write_text("its own file", encoding="utf-8")
        # What was there when the model was loaded counts.
        assert template_of(model).render(MESSAGES) == "yes"
    with Model(tmp_path / "chatty", verify="off") as model:
        assert template_of(model).render(MESSAGES) == "its own file"


def test_a_template_is_no_program(tmp_path: Path, demo_int8_folder: Path) -> None:
    """It comes with a folder that strangers made."""
    template = "{{ messages.__class__.__mro__[-1].__subclasses__() }}"
    with Model(chatty(tmp_path / "chatty", demo_int8_folder, template), verify="off") as model:
        found = template_of(model)
        with pytest.raises(ValueError, match="refuses"):
            found.render(MESSAGES)


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory, demo_int8_folder: Path) -> Iterator[Any]:
    """What a template makes of messages."""
    from runtime.server.chat_templates.chat_template import ChatTemplate

    with Model(demo_int8_folder, verify="off") as model:
        yield lambda source, messages=MESSAGES: ChatTemplate(source, model).render(messages)


@pytest.mark.parametrize(
    ("texts", "source"),
    [
        (["<|endof", "text|>"], "{% for m in messages %}{{ m.content }}{% endfor %}"),
        (["<", "|endoftext|", ">"], "{% for m in messages %}{{ m.content }}{% endfor %}"),
        (["<|endof \n", " text|>"], "{% for m in messages %}{{ m.content.strip() }}{% endfor %}"),
        (["a<|endoftext|"], "{{ messages[0].content }}>"),
    ],
)
def test_messages_cannot_make_a_special_token_together(render: Any, texts: list[str], source: str) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    with pytest.raises(ValueError, match=r"make the special token '<.endoftext.>' together"):
        render(source, messages)
    apart = "{% for m in messages %}[{{ m.content }}]<|endoftext|>{% endfor %}"
    assert render(apart, messages) == "".join(f"[{text}]<|endoftext|>" for text in texts)


# templates of strangers ---------------------------------------------------------------------------------------------

BIG = "{% set big = 'x' * 400000 %}"
BOMBS = {
    "power of constants": "{{ 10 ** (10 ** 9) }}",
    "power": "{% set n = messages|length + 9 %}{{ n ** (n ** 9) }}",
    "product of numbers": "{% set ns = namespace(x=9) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "text of constants": "{{ 'a' * 3000000000 }}",
    "text": "{{ 3000000000 * messages[0].content }}",
    "list": "{{ ([1] * 3000000000)|length }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that filter": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursion of two": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "joined texts": "{% set ns = namespace(x='a') %}{% for i in range(33) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "added texts": "{% set ns = namespace(x='a') %}{% for i in range(33) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "macros": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='a') %}"
    "{% for i in range(33) %}{% set ns.x = d(ns.x) %}{% endfor %}",
    "nested lists": "{% set ns = namespace(x='a') %}{% for i in range(33) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "nested mappings": "{% set ns = namespace(x='a') %}{% for i in range(33) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}"
    "{% endfor %}{{ ns.x }}",
    "output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "captured output": "{% set x %}{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}{% endset %}{{ x[0] }}",
    "slices": BIG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [big[i:]] %}{% endfor %}",
    "mapped": BIG + "{{ range(99999)|map(attribute='no', default=big)|sort|length }}",
    "mapped and changed": BIG + "{{ range(99999)|map(attribute='no', default=big)|map('upper')|list|length }}",
    "replace": BIG + "{{ big|replace('x', big) }}",
    "replace method": BIG + "{{ big.replace('x', big) }}",
    "replace nothing": BIG + "{{ big.replace('', big) }}",
    "join": BIG + "{{ range(99999)|join(big) }}",
    "join method": BIG + "{{ big.join(['a'] * 99999) }}",
    "indent": "{{ 'a'|indent(1000000000, true) }}",
    "json": "{{ [1]|tojson(indent=1000000000) }}",
    "round": "{{ 1.5|round(1000000000, 'floor') }}",
    "sum": "{{ ([[1] * 999] * 999)|sum(start=[])|length }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width of a filter": "{{ '%1000000000d'|format(1) }}",
    "width from a value": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:1000000000d}'.format(1) }}",
    "format from a value": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format many": BIG + "{{ ('{0}' * 9999).format(big) }}",
    "method": "{{ 'a'.ljust(1000000000) }}",
    "method of a number": "{{ (1).to_bytes(1000000000, 'big') }}",
    "words": "{{ lipsum(n=1000000000) }}",
    "time": "{{ strftime_now('%1000000000Y') }}",
    "source": "x" * 300_000,
    "parentheses": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_has_little_time_and_memory(render: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from runtime.server.chat_templates import template_limits

    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.5)
    begin = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="chat template"):
            render(BOMBS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150e6
    # Python's own bookkeeping of memory makes it several times slower.
    assert time.monotonic() - begin < 15


LEGITIMATE = {
    "roles": "{% if messages[0]['role'] == 'system' %}{% set first = messages[0].content %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{{ first }}"
    "{% for m in rest %}{{ '<' + m['role'] + '>\n' + m['content']|trim + '\n' }}{% if loop.last %}"
    ".{% endif %}{% endfor %}",
    "alternation": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ loop.index }}/{{ loop.length }}{{ m.content.strip() }}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, text='') %}{% for m in messages|selectattr('role', 'equalto', 'user') %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.text = ns.text ~ m.content.split(' ')|last %}{% endfor %}"
    "{{ ns.n }}{{ ns.text }}",
    "macro": "{% macro show(m, sep=': ') %}{{ m.role|upper }}{{ sep }}{{ m.content|replace('\n', ' ') }}{% endmacro %}"
    "{% for m in messages|reverse %}{{ show(m) }}\n{% endfor %}",
    "filters": "{{ messages|map(attribute='role')|unique|join(', ') }}{{ messages|length }}{{ 'a\nb'|indent(2) }}"
    "{{ [3, 1, 2]|sort }}{{ [1, 2]|sum }}{{ 2.567|round(1) }}{{ {'b': 1, 'a': 2}|dictsort }}"
    "{{ none|default('x', true) }}",
    "formats": "{{ '%s: %05.2f' % ('a', 1.5) }}{{ '%s-%s'|format('a', 'b') }}{{ '{:>4}|{name}'.format(1, name='n') }}",
    "containers": "{% set l = [1, 'a'] + ['b'] %}{{ l }}{{ {'k': l}.items()|list }}{{ ('a', 'b')[1] }}{{ l[::-1] }}"
    "{% if 'a' in l and messages[0].get('x') is none %}{{ 'yes' * 2 }}{% endif %}{{ 7 // 2 }}{{ 2 ** 10 }}",
    "whitespace": "  {%- for m in messages -%}\n  {{- m.content -}} \n{%- endfor %}\n{# comment #}",
    "call block": "{% macro b() %}<{{ caller() }}>{% endmacro %}{% call b() %}{{ messages[0].content }}{% endcall %}",
    "filter block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}{% set x %}a{{ 1 }}{% endset %}{{ x }}",
}


@pytest.mark.parametrize("template", LEGITIMATE.values(), ids=LEGITIMATE)
def test_limits_change_no_template_of_the_usual_kind(render: Any, template: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    expected = _compile_jinja_template(template).render(
        messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True
    )
    assert render(template) == expected


def test_what_no_load_checked_is_not_read(tmp_path: Path, demo_int8_folder: Path) -> None:
    """A template that appears after the load, or that the checksums do not list."""
    folder = Path(shutil.copytree(demo_int8_folder, tmp_path / "model"))
    with runtime.load(folder) as model:
        (folder / "chat_template.jinja").write_text("later", encoding="utf-8")
        from runtime.server.chat_templates.chat_template import find_chat_template

        assert find_chat_template(model) is None
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not listed"):
        runtime.load(folder)
