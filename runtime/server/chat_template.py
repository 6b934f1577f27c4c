"""A checkpoint's own chat template: messages to a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runtime.json_file import read_json
from runtime.model import Model


class ChatTemplate:
    """The template in `chat_template.jinja` or tokenizer_config.json, as transformers renders it."""

    def __init__(self, source: str, model: Model) -> None:
        """Raises ValueError for what is no template."""
        self._special = {
            token.content for token in model.tokenizer.get_added_tokens_decoder().values() if token.special
        }
        config = model.config
        eos = min(config.eos_token_ids, default=None)
        self._tokens = {
            name: model.tokenizer.id_to_token(id_)
            for name, id_ in (("bos_token", config.bos_token_id), ("eos_token", eos))
            if id_ is not None
        }
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template of {model.folder} is wrong: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next reply. Raises ValueError for messages that the template refuses."""
        for index, message in enumerate(messages):
            found = next((token for token in self._special if token in message["content"]), None)
            if found:  # it would end the message, and begin what its writer likes
                raise ValueError(f"message {index} has the special token {found!r} in its content")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except (TemplateError, TypeError, ArithmeticError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from None


def find_chat_template(model: Model) -> ChatTemplate | None:
    """The template of a model folder. Raises ValueError for one that is wrong."""
    source = _find_source(model.folder)
    return None if source is None else ChatTemplate(source, model)


def _find_source(folder: Path) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    source = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(source, list):  # several, with names
        source = {one.get("name"): one.get("template") for one in source}.get("default")
    if source is None or isinstance(source, str):
        return source
    raise ValueError(f"{path}: chat_template is {source!r}; a text is expected")


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes HTML


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
