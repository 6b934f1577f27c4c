"""Fields that OpenAI's clients send to a model of text: they change nothing at some values, and are refused at others.

A client library often writes out every field with its default. Such a request means the same as one without these
fields. Any other value asks for what this server does not do, and is refused with the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

MAX_METADATA = 16  # entries, as OpenAI's limit is
MAX_LABEL = 512  # characters of a text that is for the client alone

Label = Annotated[str, Field(max_length=MAX_LABEL)]
Nothing = Annotated[list[Any], Field(max_length=0)]


def _only(*accepted: Any, why: str) -> BeforeValidator:
    """Refuses every value but null and the accepted ones, and tells `why`."""

    def check(given: Any) -> Any:
        # By type as well: to Python 0 is False.
        if given is None or any(given == one and type(given) is type(one) for one in accepted):
            return given
        raise ValueError(why)

    return BeforeValidator(check)


_NO_TOOLS = "this model calls no tools; leave it out"
_TEXT_ONLY = "this model reads and writes text only; leave it out"

NoStore = Annotated[
    Literal[False] | None, _only(False, why="this server keeps no completions; leave it out, or send false")
]
NoTools = Annotated[Nothing | None, _only([], why=_NO_TOOLS)]
NoToolCall = Annotated[None, _only(why=_NO_TOOLS)]
NoToolChoice = Annotated[Literal["none", "auto"] | None, _only("none", "auto", why=_NO_TOOLS)]
TextModality = Annotated[list[Literal["text"]] | None, _only(["text"], why=_TEXT_ONLY)]
NoAudio = Annotated[None, _only(why=_TEXT_ONLY)]
NoPrediction = Annotated[None, _only(why="this server takes no predicted output; leave it out")]
NoSearch = Annotated[None, _only(why="this server searches nothing; leave it out")]
AnyTier = Annotated[
    Literal["auto", "default"] | None, _only("auto", "default", why="this server has one service tier; leave it out")
]
NoReasoning = Annotated[
    Literal["none"] | None, _only("none", why="this model does not reason before it answers; leave it out")
]
NoRefusal = Annotated[None, _only(why="messages of this server are never refusals; leave it out")]
NoAnnotations = Annotated[Nothing | None, _only([], why="messages of this server have no annotations; leave it out")]
NoObfuscation = Annotated[
    Literal[False] | None, _only(False, why="this server does not pad its chunks; leave it out, or send false")
]


class ClientFields(BaseModel):
    """What both kinds of completion take for the sake of clients that send it."""

    user: str | None = Field(None, description="for clients that send it; nothing is done with it")
    safety_identifier: Label | None = Field(None, description="likewise")
    prompt_cache_key: Label | None = Field(None, description="likewise: prompts share what they begin with by itself")
    metadata: Annotated[dict[Label, Label], Field(max_length=MAX_METADATA)] | None = Field(
        None, description="likewise; it is not kept"
    )
    store: NoStore = Field(None, description="null or false: completions are not kept")
    service_tier: AnyTier = Field(None, description="null, auto or default")


class ChatClientFields(ClientFields):
    """What chat completions take beyond that."""

    tools: NoTools = Field(None, description="null or empty: the model calls no tools")
    tool_choice: NoToolChoice = Field(None, description="null, none or auto")
    parallel_tool_calls: bool | None = Field(None, description="nothing is done with it: there are no tools")
    functions: NoTools = Field(None, description="null or empty")
    function_call: NoToolChoice = Field(None, description="null, none or auto")
    modalities: TextModality = Field(None, description="null, or text alone")
    audio: NoAudio = Field(None, description="null")
    prediction: NoPrediction = Field(None, description="null")
    web_search_options: NoSearch = Field(None, description="null")
    reasoning_effort: NoReasoning = Field(None, description="null or none")
