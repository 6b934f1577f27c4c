"""The fields of a request: OpenAI's, options of generation, and those of tasks. Others are refused by name."""

from __future__ import annotations

import itertools
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from runtime._checks import MAX_COUNT
from runtime.options import OPTIONS

MAX_ALTERNATIVES = 20
MAX_ENTRIES = 64  # of the lists of a task
MAX_BIAS = 1024  # ids
MAX_WORDS = 1024  # of stop_words
MAX_MESSAGES = 1024  # of a conversation: the longest context of GPT-2 has as many tokens
_MAX_INT = 2**31 - 1
# The field max_tokens, the end of the connection, and what only Python can write.
_ELSEWHERE = {"max_new_tokens", "cancel", "logits_processor"}
_OF_THE_SERVER = {
    "temperature",
    "logit_bias",
    "stop",
    "banned",
    "dry_sequence_breakers",
}  # fields with limits or a default of the server's own


class Fields(BaseModel):
    """null means the default, as leaving a field out does."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_one_unknown(cls, given: Any) -> Any:
        """Keep one unknown field at most. Describing errors takes time, while all requests wait; so one is enough.

        The same holds for entries of lists: there `fail_fast` ends the check at the first wrong one.
        """
        if not isinstance(given, dict):
            return given
        unknown = itertools.islice((name for name in given if name not in cls.model_fields), 1)
        return {name: given[name] for name in (*unknown, *cls.model_fields) if name in given}

    def given(self, names: typing.Container[str]) -> dict[str, Any]:
        """Of these fields, those that are set."""
        return {name: value for name, value in self.model_dump(exclude_none=True).items() if name in names}


def _field(name: str) -> Any:
    """An option as a field of the same name: its type or null, its meaning, its range."""
    option = OPTIONS[name]
    form = option.kind.json_form()
    limits: dict[str, Any] = dict(form.limits)
    if limits.get("le") == MAX_COUNT:
        # The option has no limit of its own.
        limits["le"] = _MAX_INT
    if typing.get_origin(form.type) is list:
        # One wrong entry is enough to refuse a list: see `Fields`.
        limits["fail_fast"] = True
    return (Annotated[form.type, Field(**limits)] | None, Field(None, description=option.about))


OPTION_NAMES = frozenset(OPTIONS) - _ELSEWHERE
# Options with a range, as they are in Python. The others are declared below, with limits or meanings of this server.
OptionFields = create_model(
    "OptionFields",
    __base__=Fields,
    **{name: _field(name) for name in OPTIONS if name in OPTION_NAMES - _OF_THE_SERVER},
)
Text = Annotated[str, Field(max_length=256)]
FewTexts = Text | Annotated[list[Text], Field(max_length=16, fail_fast=True)]
Texts = Annotated[list[str], Field(max_length=MAX_ENTRIES, fail_fast=True)]
Pair = Annotated[list[str], Field(min_length=2, max_length=2, fail_fast=True)]
Pairs = Annotated[list[Pair], Field(max_length=MAX_ENTRIES, fail_fast=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=_MAX_INT)]], Field(min_length=1, fail_fast=True)]


def _check_bias(given: object) -> object:
    if isinstance(given, dict) and len(given) > MAX_BIAS:
        raise ValueError(f"at most {MAX_BIAS} ids")
    return given


class SharedFields(OptionFields):  # type: ignore[misc, valid-type]  # mypy does not follow create_model
    """What both kinds of completion take."""

    model: str | None = Field(None, description="the model that is served, or null")
    temperature: float | None = Field(None, ge=0, description="0 is greedy; default 1, or the task's own")
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], float] | None, BeforeValidator(_check_bias)
    ] = Field(None, max_length=MAX_BIAS, description="added to the logits of these ids")
    stop: FewTexts | None = None
    banned: FewTexts | None = Field(None, description=OPTIONS["banned"].about)
    dry_sequence_breakers: FewTexts | None = Field(None, description=OPTIONS["dry_sequence_breakers"].about)
    n: int | None = Field(None, ge=1, le=_MAX_INT)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="for clients that send it; nothing is done with it")

    def generation_options(self) -> dict[str, Any]:
        """The options of generation that are given, under the runtime's names."""
        options: dict[str, Any] = self.given(OPTION_NAMES)
        if "logit_bias" in options:
            options["logit_bias"] = {int(id_): value for id_, value in options["logit_bias"].items()}
        return options


class StreamOptions(Fields):
    """What a stream ends with."""

    include_usage: bool | None = Field(None, description="a last chunk with the counts of tokens")


class TaskFields(Fields):
    """The fields of `runtime.perform`, for requests with a task."""

    to: str | None = None
    examples: Pairs | None = None
    question: str | None = None
    turns: Pairs | None = None
    options: Texts | None = Field(None, description="to choose from")
    scoring: Literal["full", "partial"] | None = None
    stop_words: Annotated[list[str], Field(max_length=MAX_WORDS, fail_fast=True)] | None = None
    abstain_below: float | None = Field(None, ge=0, le=1)


class CompletionRequest(SharedFields, TaskFields):
    """OpenAI's fields of a completion, and ours."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: int | None = Field(None, ge=0, le=_MAX_INT, description="default 16, or the task's own; 0 with echo")
    best_of: int | None = Field(None, ge=1, le=_MAX_INT)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="alternatives to show for each token")
    suffix: str | None = Field(None, description="refused: GPT-2 cannot write towards an end")
    task: str | None = Field(None, description="what to do with the prompt: see runtime.perform")


class Message(Fields):
    """One turn of a conversation."""

    role: str
    content: str
    name: str | None = None


class ChatRequest(SharedFields):
    """OpenAI's fields of a chat completion, and ours."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1, le=_MAX_INT)
    max_completion_tokens: int | None = Field(None, ge=1, le=_MAX_INT, description="default: what the context holds")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
