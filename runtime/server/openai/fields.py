"""The fields of a request: OpenAI's, options of generation, and those of tasks. Others are refused by name."""

from __future__ import annotations

import itertools
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from runtime._checks import MAX_COUNT
from runtime.errors import OptionError
from runtime.options import FORMS, MAX_SEED, OPTIONS
from runtime.server.errors import short
from runtime.server.openai.client_fields import (
    ChatClientFields,
    ClientFields,
    NoAnnotations,
    NoAudio,
    NoObfuscation,
    NoRefusal,
    NoToolCall,
    NoTools,
)

MAX_ALTERNATIVES = 20
MAX_ENTRIES = 64  # of the lists of a task
MAX_BIAS = 1024  # ids
MAX_WORDS = 1024  # of stop_words
MAX_MESSAGES = 1024  # of a conversation: the longest context of GPT-2 has as many tokens
MAX_PARTS = 64  # of the content of one message
_MAX_INT = 2**31 - 1
# The field max_tokens, the end of the connection, and what only Python can write.
_ELSEWHERE = {"max_new_tokens", "cancel", "logits_processor"}
# Fields with limits or a default of the server's own.
_OF_THE_SERVER = {"temperature", "logit_bias", "stop", "seed", "banned", "dry_sequence_breakers"}
# At temperature 0 the likeliest token is taken. These filters never remove it, so there they change nothing.
_KEEP_THE_LIKELIEST = ("top_k", "top_p", "min_p")


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
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = itertools.islice((name for name in given if name not in known), 1)
        return {name: given[name] for name in (*unknown, *known) if name in given}

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
TokenId = Annotated[int, Field(ge=0, le=_MAX_INT)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _check_bias(given: object) -> object:
    if isinstance(given, dict) and len(given) > MAX_BIAS:
        raise ValueError(f"at most {MAX_BIAS} ids")
    return given


class JsonSchemaFormat(Fields):
    """The schema of a `response_format`, under OpenAI's names."""

    schema_: dict[str, Any] = Field(alias="schema", description="a JSON schema")
    name: Text | None = Field(None, description="for clients that send it; nothing is done with it")
    description: str | None = Field(None, description="likewise; the model does not read it")
    strict: bool | None = Field(None, description="likewise: the output always has the schema")


class TextFormat(Fields):
    """Any text, which is the default."""

    type: Literal["text"]


class JsonObjectFormat(Fields):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Fields):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class SharedFields(OptionFields, ClientFields):  # type: ignore[misc, valid-type]  # mypy does not follow create_model
    """What both kinds of completion take."""

    model: str | None = Field(None, description="a model that /v1/models lists; null is the first")
    temperature: float | None = Field(None, ge=0, description="0 is greedy; default 1, or the task's own")
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], float] | None, BeforeValidator(_check_bias)
    ] = Field(None, max_length=MAX_BIAS, description="added to the logits of these ids")
    stop: FewTexts | None = None
    banned: FewTexts | None = Field(None, description=OPTIONS["banned"].about)
    dry_sequence_breakers: FewTexts | None = Field(None, description=OPTIONS["dry_sequence_breakers"].about)
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description=f"{OPTIONS['seed'].about}, and so does -1")
    response_format: ResponseFormat | None = Field(None, description="OpenAI's way to ask for structured output")
    n: int | None = Field(None, ge=1, le=_MAX_INT)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def generation_options(self) -> dict[str, Any]:
        """The options of generation that are given, under the runtime's names. What changes nothing is left out.

        Raises ValueError where `response_format` and an option both ask for structured output.
        """
        options: dict[str, Any] = self.given(OPTION_NAMES)
        if "logit_bias" in options:
            options["logit_bias"] = {int(id_): value for id_, value in options["logit_bias"].items()}
        if options.get("seed") == -1:
            del options["seed"]
        if self.temperature == 0:
            for name in _KEEP_THE_LIKELIEST:
                options.pop(name, None)
        return options | self._format_options()

    def _format_options(self) -> dict[str, Any]:
        """What `response_format` asks for, as an option of generation."""
        asked = self.response_format
        if asked is None or isinstance(asked, TextFormat):
            return {}
        if given := [name for name in FORMS if getattr(self, name) is not None]:
            told = f"response_format and {given[0]} are given, but a text has one form; give one of them"
            raise OptionError(told, "response_format")
        if isinstance(asked, JsonObjectFormat):
            return {"json_schema": {"type": "object"}}
        return {"json_schema": asked.json_schema.schema_}

    @property
    def has_structured_output(self) -> bool:
        """Whether it asks for choices, a regex or a JSON schema."""
        return bool(self._format_options()) or any(getattr(self, name) is not None for name in FORMS)


class StreamOptions(Fields):
    """What a stream ends with."""

    include_usage: bool | None = Field(None, description="a last chunk with the counts of tokens")
    include_obfuscation: NoObfuscation = Field(None, description="null or false")


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
    best_of: int | None = Field(
        None, ge=1, le=_MAX_INT, description="continuations to decode, of which the best n are shown; default n"
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="alternatives to show for each token")
    suffix: str | None = Field(
        None,
        description="the text after the gap: the best_of continuations (default 8) are ranked by its probability after "
        "them; empty or null ranks by nothing",
    )
    task: str | None = Field(None, description="what to do with the prompt: see runtime.perform")


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


def _check_parts(given: object) -> object:
    """Refuse parts that are no text by their own name: pydantic would only say what it expects."""
    if isinstance(given, list):
        kinds = (part.get("type") for part in given[:MAX_PARTS] if isinstance(part, dict))
        if (kind := next((one for one in kinds if isinstance(one, str) and one != "text"), None)) is not None:
            raise ValueError(f"a part of the type {short(kind)} is not supported: this model reads text only")
    return given


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class Message(Fields):
    """One turn of a conversation. Clients send back a reply as they got it, so its empty fields are taken, too."""

    role: str
    content: Annotated[str | Parts, BeforeValidator(_check_parts)] = Field(
        description="a text, or parts of one; parts are joined by line ends"
    )
    name: str | None = None
    refusal: NoRefusal = Field(None, description="null")
    annotations: NoAnnotations = Field(None, description="null or empty")
    audio: NoAudio = Field(None, description="null")
    tool_calls: NoTools = Field(None, description="null or empty")
    function_call: NoToolCall = Field(None, description="null")

    def plain(self) -> dict[str, str]:
        """What a chat template reads: role, content as one text, and the name where there is one."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        found = {"role": self.role, "content": text}
        return found if self.name is None else {**found, "name": self.name}


class ChatRequest(SharedFields, ChatClientFields):
    """OpenAI's fields of a chat completion, and ours."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: int | None = Field(None, ge=1, le=_MAX_INT)
    max_completion_tokens: int | None = Field(None, ge=1, le=_MAX_INT, description="default: what the context holds")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
