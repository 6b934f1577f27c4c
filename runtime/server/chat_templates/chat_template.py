"""A checkpoint's own chat template, which makes a prompt of messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime._json import shown
from runtime.model.integrity import CHAT_TEMPLATE, TOKENIZER_CONFIG
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.server.chat_templates.template_limits import LimitedEnvironment, metered
from runtime.tokenization.roles import roles_of

# A private character of Unicode, which no special token has.
_MARK = "\ue000"
_ROLE = re.compile(r"[\w .-]{1,64}")
NO_TEMPLATE = "this model has no chat template: it continues text, and was not taught to answer; use /v1/completions"


class ChatTemplate:
    """The template in `chat_template.jinja` or tokenizer_config.json, as transformers renders it."""

    def __init__(self, source: str, model: Model) -> None:
        """Raises ValueError for what is no template, and for roles of special tokens that are none."""
        self._special = {token.content for token in calls.added_tokens(model.tokenizer).values() if token.special}
        self._roles = roles_of(model.read_json(TOKENIZER_CONFIG) or {}, model.folder / TOKENIZER_CONFIG)
        try:
            self._template = metered(lambda: LimitedEnvironment().from_string(source))
        # jinja2's errors, and Python's of the code that jinja2 makes of a template.
        except Exception as error:
            raise ValueError(f"the chat template of {model.folder} is wrong: {_one_line(error)}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next reply.

        Raises ValueError for messages that the template refuses, for special tokens in any part of a message, and for a
        template that takes more time or memory than `runtime.server.chat_templates.template_limits` allows.
        """
        for index, message in enumerate(messages):
            self._check(index, message)
        prompt = self._render(messages)
        if any(self._may_complete(text) for message in messages for text in message.values()):
            self._check_apart(messages, prompt)
        return prompt

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return metered(lambda: self._template.render(**{**self._roles, **given}))
        # Whatever a template does that it should not.
        except Exception as error:
            raise ValueError(f"the chat template refuses these messages: {_one_line(error)}") from None

    def _check(self, index: int, message: Mapping[str, str]) -> None:
        """Refuse special tokens in any part of a message: they would end it, and begin what its writer likes."""
        for field, value in message.items():
            if found := next((token for token in self._special if token in value), None):
                raise ValueError(f"message {index} has the special token {found!r} in its {field}")

    def _may_complete(self, text: str) -> bool:
        """Whether a text, beside others, may make a special token: it has a part of one at its beginning or end."""
        bare = text.strip()
        return any(
            bare.endswith(token[:at]) or bare.startswith(token[at:]) or bare in token
            for token in self._special
            for at in range(1, len(token))
        )

    def _check_apart(self, messages: Sequence[Mapping[str, str]], prompt: str) -> None:
        """Refuse texts that make a special token together with what the template puts beside them.

        A character that is part of no special token is put around every text but the role, which templates compare:
        there must be as many special tokens as without.
        """
        for index, message in enumerate(messages):
            if not _ROLE.fullmatch(message.get("role", "")):
                raise ValueError(
                    f"message {index} has the role {message.get('role')!r}; letters and digits are expected"
                )
        apart = [
            {field: text if field == "role" else f"{_MARK}{text}{_MARK}" for field, text in message.items()}
            for message in messages
        ]
        marked = self._render(apart)
        for token in self._special:
            if prompt.count(token) > marked.count(token):
                raise ValueError(f"the messages make the special token {token!r} together with what is beside them")


def open_chat(model: Model) -> tuple[ChatTemplate | None, str]:
    """The template of a model folder; where there is none that works, None and what to tell those who ask for it."""
    try:
        template = find_chat_template(model)
    except (ValueError, OSError) as error:
        return None, f"this model has no chat, since {_one_line(error)}; /v1/completions continues text"
    return template, NO_TEMPLATE


def find_chat_template(model: Model) -> ChatTemplate | None:
    """The template of a model, as its folder held it when the model was loaded.

    Raises ValueError for one that is wrong.
    """
    source = _find_source(model)
    return None if source is None else ChatTemplate(source, model)


def _find_source(model: Model) -> str | None:
    if (source := model.read_text(CHAT_TEMPLATE)) is not None:
        return source
    given = (model.read_json(TOKENIZER_CONFIG) or {}).get("chat_template")
    # Several templates have names.
    if isinstance(given, list) and all(isinstance(one, dict) for one in given):
        given = {one.get("name"): one.get("template") for one in given}.get("default")
    if given is None or isinstance(given, str):
        return given
    raise ValueError(f"{model.folder / TOKENIZER_CONFIG}: chat_template is {shown(given)}; a text is expected")


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
