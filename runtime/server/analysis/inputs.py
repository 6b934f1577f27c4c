"""The field `input` of requests that label or embed texts, and what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from runtime._checks import Prompt
from runtime.errors import ContextLengthError
from runtime.server.engine.engine import Engine
from runtime.server.errors import CONTEXT_LENGTH, ApiError, server_error
from runtime.server.openai.fields import Ids

MAX_INPUTS = 2048
"""Texts of a request, as OpenAI's limit is."""
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
SeveralIds = Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


def as_texts(engine: Engine, given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[Prompt]:
    """One text, or ids, or several of them, as a list.

    Raises ApiError for one that is longer than any text that fits: the tokenizer takes more than linear time for it.
    """
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]  # type: ignore[assignment]
    texts: list[Prompt] = [one if isinstance(one, str) else list(one) for one in given]  # type: ignore[arg-type]
    for index, text in enumerate(texts):
        if len(text) > engine.max_characters:
            told = f"input[{index}] has {len(text):,} characters; at most {engine.max_characters:,} can fit: shorten it"
            raise ApiError(told, param="input", code=CONTEXT_LENGTH)
    return texts


@contextlib.contextmanager
def reading_input() -> Iterator[None]:
    """What is wrong with a text as an ApiError of the field `input`."""
    try:
        yield
    except ContextLengthError as error:
        raise ApiError(str(error), param="input", code=CONTEXT_LENGTH) from None
    except (TypeError, ValueError) as error:
        raise ApiError(str(error), param="input") from None
    except (MemoryError, RuntimeError) as error:
        raise server_error(str(error) or type(error).__name__) from error


def check_reply_size(engine: Engine, n_bytes: int) -> None:
    """Raise ApiError for a reply that may be larger than this server's limit."""
    if n_bytes > (most := engine.settings.max_reply_bytes):
        told = f"the reply may have {n_bytes:,} bytes; this server's limit is {most:,}: send the texts in parts"
        raise ApiError(told, param="input", code="reply_too_large")
