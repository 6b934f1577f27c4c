"""Embeddings of texts: the hidden states of the last layer, pooled over the tokens of each text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime._checks import Prompt, check_choice
from runtime.heads.inputs import ids_of_text
from runtime.model.model import Model
from runtime.scoring.windows import TEXTS_TOGETHER, Request, run

Pooling = Literal["mean", "last"]
Embedding = NDArray[np.float32]
"""[n_embd]."""


def check_pooling(pooling: object) -> Pooling:
    """The value itself. Raises ValueError for an unknown way of pooling."""
    return "mean" if check_choice("pooling", pooling, get_args(Pooling)) == "mean" else "last"


def embed(
    model: Model,
    texts: Iterable[Prompt],
    pooling: Pooling,
    *,
    name: str = "texts",
    progress: Callable[[int], object] = lambda _n: None,
) -> Iterator[Embedding]:
    """The embedding of each text, in order, as groups of texts are done; see `runtime.embed`.

    name: of the argument, for messages. progress: called with the number of texts that were embedded since the last
    call.
    """
    rows = (ids_of_text(model, text, f"{name}[{index}]") for index, text in enumerate(texts))
    while group := list(itertools.islice(rows, TEXTS_TOGETHER)):
        found = embed_ids(model, group, pooling)
        progress(len(found))
        yield from found


def embed_ids(model: Model, rows: Sequence[Sequence[int]], pooling: Pooling) -> Embedding:
    """The embeddings of texts that are ids, each within the model's context: [n_texts, n_embd].

    Short texts share passes, with exactly the results that each has alone.
    """
    requests = [Request(ids, 0 if pooling == "mean" else len(ids) - 1) for ids in rows]
    sums = np.zeros((len(rows), model.config.n_embd))
    for block in run(model, requests, hidden=True):
        # One position at a time, in fp64: the sum does not depend on how the positions are cut into blocks.
        for state in block.logits:
            sums[block.request] += state
    counts = [len(ids) - request.first for ids, request in zip(rows, requests, strict=True)]
    pooled: Embedding = (sums / np.array(counts)[:, None]).astype(np.float32)
    return pooled
