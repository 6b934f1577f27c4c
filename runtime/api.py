"""The public functions: thin, over the modules below."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime import generation, scoring
from runtime.default_model import check_path, find, resolve
from runtime.model import Model
from runtime.options import Options
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


def stream(
    prompt: str,
    *,
    model: ModelOrPath = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they are decoded; no piece ends inside a character.

    The options are `generate`'s, and the pieces join to what it returns. Wrong options raise here, not at the
    first piece. Closing the iterator ends the work.
    """
    options = Options(max_new_tokens, temperature, top_k, top_p, stop, seed)
    opened = resolve(model)
    ids = encode_prompt(opened, prompt)
    generation.check_length(len(ids), options.max_new_tokens, opened.config.n_positions)
    return generation.generate_pieces(opened, ids, options)


def generate(
    prompt: str,
    *,
    model: ModelOrPath = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
) -> str:
    """The continuation of a prompt: the text that follows it, without the prompt itself.

    prompt: any text, `<|endoftext|>` in it included (it is plain text); empty starts from the beginning of a text.
    model: a Model, the path of a model folder, or None: the folder in $GPT2_EDGE_MODEL, else the only built model
        under ./models. A path or None is loaded at its first use and kept.
    max_new_tokens: at most this many tokens; fewer when the model ends the text.
    temperature: 0.0 is greedy: the likeliest token every time. Above 0 samples; 1.0 is the model's own distribution.
    top_k: sample from the k likeliest tokens; 0 is off.
    top_p: sample from the likeliest tokens that together reach this probability; 1.0 is off.
    stop: a string or several; the text ends before the first that appears.
    seed: of the sampling, 0 to 2**64 - 1: same seed, same text. None draws a new one.
    Raises ValueError or TypeError for a wrong option, and ValueError when prompt and max_new_tokens together pass
    the model's n_positions; FileNotFoundError where no model is found.
    """
    return "".join(
        stream(
            prompt,
            model=model,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=stop,
            seed=seed,
        )
    )


def score_text(text: str, *, model: ModelOrPath = None, stride: int | None = None) -> Score:
    """Log-probability of every token of a text but the first, and their perplexity.

    Windows of n_positions tokens begin every `stride` tokens (default n_positions: fastest; smaller gives each
    token more context). No token is prepended; every other token is predicted once.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    return scoring.score_text(resolve(model), text, stride)
