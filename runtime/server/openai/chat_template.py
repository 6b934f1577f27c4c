"""A checkpoint's own chat template: messages to a prompt."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime._json import read_json
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.tokenization.roles import read_roles

NO_TEMPLATE = "this model has no chat template: it continues text, and was not taught to answer; use /v1/completions"


class ChatTemplate:
    """The template in `chat_template.jinja` or tokenizer_config.json, as transformers renders it."""

    def __init__(self, source: str, model: Model) -> None:
        """Raises ValueError for what is no template, and for roles of special tokens that are none."""
        self._special = {token.content for token in calls.added_tokens(model.tokenizer).values() if token.special}
        self._roles = read_roles(model.folder)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # jinja2's, and Python's of what it compiles a template to
            raise ValueError(f"the chat template of {model.folder} is wrong: {_one_line(error)}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next reply. Raises ValueError for messages that the template refuses."""
        for index, message in enumerate(messages):
            self._check(index, message)
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render(**{**self._roles, **given})
        except Exception as error:  # whatever a template does that it should not
            raise ValueError(f"the chat template refuses these messages: {_one_line(error)}") from None

    def _check(self, index: int, message: Mapping[str, str]) -> None:
        """Refuse special tokens in any part of a message: they would end it, and begin what its writer likes."""
        for field, value in message.items():
            if found := next((token for token in self._special if token in value), None):
                raise ValueError(f"message {index} has the special token {found!r} in its {field}")


def open_chat(model: Model) -> tuple[ChatTemplate | None, str]:
    """The template of a model folder; where there is none that works, None and what to tell those who ask for it."""
    try:
        template = find_chat_template(model)
    except (ValueError, OSError) as error:
        return None, f"this model has no chat, since {_one_line(error)}; /v1/completions continues text"
    return template, NO_TEMPLATE


def find_chat_template(model: Model) -> ChatTemplate | None:
    """The template of a model folder. Raises ValueError for one that is wrong."""
    source = _find_source(model.folder)
    return None if source is None else ChatTemplate(source, model)


def _find_source(folder: Path) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    source = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(source, list) and all(isinstance(one, dict) for one in source):  # several, with names
        source = {one.get("name"): one.get("template") for one in source}.get("default")
    if source is None or isinstance(source, str):
        return source
    raise ValueError(f"{path}: chat_template is {source!r}; a text is expected")


class _Generation(Extension):
    """`{% generation %}` around what the model wrote: training masks by it, and a prompt has it as it is."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own name and type

    def parse(self, parser: Parser) -> nodes.Node:
        """The body, in a scope of its own as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter: jinja2's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
