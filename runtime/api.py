"""The public functions: thin, over the modules below."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from runtime import generation, scoring
from runtime.completion import Completion
from runtime.default_model import check_path, find, resolve
from runtime.model import Model
from runtime.options import Options, OptionsDict, check_count, make_options, takes_options
from runtime.row import Place, Row
from runtime.scoring import Score
from runtime.text import encode_prompt

ModelOrPath = Model | str | os.PathLike[str] | None


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Model:
    """Open a model folder: one that `export/build.py` made, or a plain optimum export of GPT-2 with past-key-values.

    path: the folder; None is the one in $GPT2_EDGE_MODEL, else the only built model under ./models.
    threads: for the products within a pass; None lets onnxruntime take every physical core.
    Raises FileNotFoundError, naming the folder or file that is missing; ValueError for one that is damaged or not
    GPT-2's, and for several built models to choose from.
    """
    return Model(Path(find() if path is None else check_path(path)), threads=threads)


@takes_options
def generate(prompt: str, *, model: ModelOrPath = None, **options: Unpack[OptionsDict]) -> str:
    """The continuation of a prompt: the text that follows it, without the prompt itself.

    prompt: any text; an empty one starts from the beginning of a text.
    model: a Model, the path of a model folder, or None: the folder in $GPT2_EDGE_MODEL, else the only built model
        under ./models. A path or None is loaded at its first use and kept.
    Raises TypeError or ValueError for a wrong option; ValueError when prompt and max_new_tokens pass the model's
    n_positions, unless `overflow` says otherwise; FileNotFoundError where no model is found.
    """
    return "".join(stream(prompt, model=model, **options))


@takes_options
def stream(prompt: str, *, model: ModelOrPath = None, **options: Unpack[OptionsDict]) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they are decoded; no piece ends inside a character.

    Takes and raises what `generate` does, and the pieces join to what it returns. What is wrong with the options
    raises here, not at the first piece. Closing the iterator ends the work.
    """
    opened = resolve(model)
    rows = [_make_row(opened, prompt, make_options(options), Place())]
    return (piece for _, piece in generation.generate_pieces(opened, rows) if piece)


@takes_options
def stream_many(
    prompts: Sequence[str],
    *,
    model: ModelOrPath = None,
    batch_size: int = generation.BATCH_SIZE,
    **options: Unpack[OptionsDict],
) -> Iterator[tuple[int, str]]:
    """The continuations of several prompts, decoded together: (index of the prompt, piece of its continuation).

    Takes what `generate` does; each prompt's pieces join to what `generate` returns for it.
    batch_size: how many decode at a time; the others wait.
    """
    opened = resolve(model)
    checked = make_options(options)
    check_count("batch_size", batch_size)
    rows = [_make_row(opened, prompt, checked, Place(index)) for index, prompt in enumerate(_as_list(prompts))]
    return (event for event in generation.generate_pieces(opened, rows, batch_size) if event[1])


@takes_options
def complete(
    prompts: str | Sequence[str],
    *,
    model: ModelOrPath = None,
    n: int = 1,
    logprobs: int = 0,
    batch_size: int = generation.BATCH_SIZE,
    **options: Unpack[OptionsDict],
) -> list[Completion]:
    """Continuations with all that is known of them, prompt by prompt: `n` for each, every one decoded as if alone.

    Takes what `generate` does, and:
    n: samples for each prompt; more than one needs a temperature above 0.
    logprobs: how many alternatives to record for each token.
    batch_size: how many rows decode at a time; the others wait.
    """
    opened = resolve(model)
    checked = make_options(options)
    check_count("n", n)
    check_count("batch_size", batch_size)
    check_count("logprobs", logprobs, least=0)
    if n > 1 and checked.temperature == 0:
        raise ValueError(f"n is {n}, but at temperature 0 all samples are the same; set temperature")
    if logprobs > opened.config.vocab_size:
        raise ValueError(f"logprobs is {logprobs}; the model has {opened.config.vocab_size} tokens")
    rows = [
        _make_row(opened, prompt, checked, Place(index, sample), n_top=logprobs)
        for index, prompt in enumerate(_as_list(prompts))
        for sample in range(n)
    ]
    for _ in generation.generate_pieces(opened, rows, batch_size):
        pass
    return [row.completion() for row in rows]


def _make_row(model: Model, prompt: str, options: Options, place: Place, n_top: int | None = None) -> Row:
    ids = encode_prompt(model, prompt, special_tokens=options.special_tokens)
    return Row(model, ids, options, place, n_top)


def _as_list(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("there are no prompts; give at least one")
    return texts


def score_text(text: str, *, model: ModelOrPath = None, stride: int | None = None) -> Score:
    """Log-probability of every token of a text but the first, and their perplexity.

    Windows of n_positions tokens begin every `stride` tokens (default n_positions: fastest; smaller gives each
    token more context). No token is prepended; every other token is predicted once.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    return scoring.score_text(resolve(model), text, stride)
