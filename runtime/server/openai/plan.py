"""From a request to the rows that answer it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.generation.row import Place
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.options import FORMS, Options, make_options
from runtime.server.engine.engine import Engine
from runtime.server.engine.form_time import RequestInterruption
from runtime.server.engine.job import Job
from runtime.server.engine.served_row import ServedRow
from runtime.server.engine.token_names import TextPlace, find_places
from runtime.server.errors import ApiError, context_error
from runtime.tokenization.encode import beginning_of_text, encode, encode_prompt_with_spans

MAX_FORM_CHARACTERS = 2**15
TOKEN_BYTES = 16  # of a reply, for the text of a token: four times as many as GPT-2's have on average
ENTRY_BYTES = 64  # of a reply, for a token's name and log-probability


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the model reads, and how it goes on."""

    text: str
    ids: Sequence[int]
    options: Options
    n_truncated: int = 0  # tokens that a task left out
    places: Sequence[TextPlace] = ()  # of the tokens of a text that is continued as it is


def as_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt or several as a list."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def limit(engine: Engine, job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, and the server's own ends: its deadline, the client's leaving. Raises ApiError above a limit."""
    settings = engine.settings
    for name in FORMS:
        # compiled, a form may take a thousand times as much
        if (n := len(str(options.get(name, "")))) > MAX_FORM_CHARACTERS:
            raise ApiError(f"{name} is {n} characters; this server's limit is {MAX_FORM_CHARACTERS}", param=name)
    n_vocab = engine.model.config.vocab_size
    for name in ("suppress_ids", "stop_ids"):
        if (n := len(options.get(name, ()))) > n_vocab:
            raise ApiError(f"{name} is {n} ids; the vocabulary has {n_vocab}", param=name)
    if options.get("lookup"):
        told = "lookup is for one continuation alone, and here all share their passes; leave it out"
        raise ApiError(told, param="lookup")
    n_new, deadline = options.get("max_new_tokens", 0), options.get("deadline", settings.timeout)
    if n_new > settings.max_tokens:
        raise ApiError(f"max_tokens is {n_new}; this server's limit is {settings.max_tokens}", param="max_tokens")
    if deadline > settings.timeout:
        raise ApiError(f"deadline is {deadline}; this server's limit is {settings.timeout} s", param="deadline")
    job.end_rows_within(deadline)
    return {**options, "deadline": deadline, "cancel": job.is_cancelled}


def check_reply(engine: Engine, prompts: Sequence[Prompt], n_samples: int, n_top: int | None, *, echo: bool) -> int:
    """Bytes that the reply may have, about; n_top: None shows no tokens. Raises ApiError above the server's limit."""
    n_entry = 0 if n_top is None else (2 + n_top) * ENTRY_BYTES
    total = 0
    for prompt in prompts:
        total += _most_new_ids(engine, prompt) * (TOKEN_BYTES + n_entry)
        total += len(prompt.text.encode("utf-8", "replace")) + len(prompt.ids) * n_entry if echo else 0
    total *= n_samples
    if total > (most := engine.settings.max_reply_bytes):
        told = f"the reply may have {total:,} bytes; this server's limit is {most:,}: ask for fewer continuations, "
        raise ApiError(f"{told}tokens or logprobs, or leave out echo", code="reply_too_large")
    return total


def _most_new_ids(engine: Engine, prompt: Prompt) -> int:
    n_new, n_positions = prompt.options.max_new_tokens, engine.model.config.n_positions
    return min(n_new, n_positions) if prompt.options.overflow == "stop" else n_new


def encode_one(engine: Engine, job: Job, prompt: str | list[int], options: Options) -> Prompt:
    """A prompt as it is: a text has the ids that `runtime.generate` continues. Raises ApiError or ValueError."""
    job.check()
    if isinstance(prompt, str):
        check_length(engine, prompt)
        ids, spans = encode_prompt_with_spans(engine.model, prompt, special_tokens=options.special_tokens)
        return Prompt(prompt, ids, options, places=find_places(prompt, spans))
    if len(prompt) > engine.max_characters:  # as many as a text may have characters
        raise too_long(engine, f"a prompt of {len(prompt)} token ids is far more than that")
    n_vocab = engine.model.config.vocab_size
    if max(prompt) >= n_vocab:
        raise ApiError(f"token id {max(prompt)} in prompt is outside the vocabulary of {n_vocab}", param="prompt")
    text = Detokenizer(engine.model.tokenizer, skip_special_tokens=False).decode(prompt)
    return Prompt(text, prompt, options)


def encode_rendered(engine: Engine, job: Job, text: str, options: Options) -> Prompt:
    """What a chat template made: it has its special tokens in it, and nothing is put around it, as in transformers.

    Raises ApiError or ValueError.
    """
    job.check()
    check_length(engine, text)
    ids = encode(engine.model, text, special_tokens=options.special_tokens)
    return Prompt(text, ids or [beginning_of_text(engine.model)], options)


def check_length(engine: Engine, *texts: str) -> None:
    """Refuse texts that are too long, whatever their tokens and whatever overflow says, before they are made.

    The tokenizer lets nothing else run, and takes more than linear time for a long word. Raises ApiError.
    """
    if (n := sum(map(len, texts))) > engine.max_characters:
        raise too_long(engine, f"a text of {n} characters is more than so many tokens can be")


def too_long(engine: Engine, message: str) -> ApiError:
    """The error of a prompt that is too long for the model."""
    return context_error(message, engine.model.config.n_positions)


def make_rows(
    engine: Engine, job: Job, prompts: Sequence[Prompt], n_samples: int, n_top: int | None
) -> list[ServedRow]:
    """The rows of all prompts. Raises ContextLengthError where a prompt does not fit, ApiError or ValueError else."""
    if n_samples > 1 and prompts[0].options.temperature == 0:
        raise ApiError("at temperature 0 all samples are the same: set temperature, or ask for one", param="n")
    interruption = RequestInterruption(prompts[0].options, job.started)
    return [
        _make_row(engine, job, prompt, Place(index, sample), n_top, interruption)
        for index, prompt in enumerate(prompts)
        for sample in range(n_samples)
    ]


def _make_row(
    engine: Engine, job: Job, prompt: Prompt, place: Place, n_top: int | None, interruption: RequestInterruption
) -> ServedRow:
    job.check()
    return ServedRow(engine.model, prompt.ids, prompt.options, place, n_top, job.post, interruption)


def make_limited(engine: Engine, job: Job, options: Mapping[str, Any]) -> Options:
    """Options within the server's limits. Raises ApiError or ValueError."""
    return make_options(limit(engine, job, options))
