"""Chat, where the checkpoint has a template for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

import runtime
from runtime.model.model import Model
from runtime.tokenization.encode import encode
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


def chatty(folder: Path, source: Path, template: Any) -> Path:
    """A copy of a model folder, with a chat template."""
    shutil.copytree(source, folder)
    change_settings(folder, chat_template=template)
    return folder


def template_of(model: Model) -> Any:
    """The chat template, which is there; imported here, since the server is an extra."""
    from runtime.server.openai.chat_template import find_chat_template

    template = find_chat_template(model)
    assert template
    return template


def change_settings(folder: Path, **changes: Any) -> None:
    """Edit tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


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
        ({"messages": MESSAGES, "max_tokens": 3, "max_completion_tokens": 3}, "give one"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        ({"messages": MESSAGES, "tools": []}, "unknown field 'tools'"),
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
