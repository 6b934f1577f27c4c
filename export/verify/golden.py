"""Golden outputs: what this very model writes, recorded so that any device can check that it does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.verify import own_writing
from runtime._math import log_softmax
from runtime.model.model import Model
from runtime.model.prefill import prefill
from runtime.tokenization.detokenizer import Detokenizer
from runtime.tokenization.encode import encode_prompt

N_IDS = 24
N_PROMPT_IDS = 12  # of a prompt that the model writes itself
PROMPTS = (
    "Once upon a time there was a little mouse who",
    "The quick brown fox jumps over the lazy dog. Then",
    "¿Qué tal? El niño comió una manzana y",
    "1, 2, 3, 4, 5, 6,",
)
# above the largest difference, measured on the demo, between processors (`make emulate`: AVX-512 VNNI, AVX2, AVX, SSE,
# arm64 with and without dot product) and versions of onnxruntime (1.23, 1.32): fp32 0.00002, int8 0.133, int4 0.098
TOLERANCE = {"fp32": 0.001, "int8": 0.25, "int4": 0.25}


def record(folder: Path, precision: str) -> dict[str, Any]:
    """Greedy continuations of a few prompts: ids, their log-probabilities, and their margins over the second.

    The end of a text is a token like any other here.
    """
    with Model(folder) as model:
        records = [_record(model, *_begin(model, prompt, seed)) for seed, prompt in enumerate(PROMPTS)]
    return {"tolerance": TOLERANCE[precision], "records": records}


def _begin(model: Model, prompt: str, seed: int) -> tuple[str, list[int]]:
    """The prompt and its ids; where the vocabulary cannot write it, one that the model writes itself."""
    n_most = model.config.n_positions // 2  # a tiny context takes the beginning
    if own_writing.can_write(model.tokenizer, prompt):
        return prompt, encode_prompt(model, prompt)[:n_most]
    ids = own_writing.write_prompt(model, min(N_PROMPT_IDS, n_most), seed)
    return Detokenizer(model.tokenizer).decode(ids), ids


def _record(model: Model, prompt: str, prompt_ids: list[int]) -> dict[str, Any]:
    n_positions = model.config.n_positions
    n_ids = min(N_IDS, n_positions - len(prompt_ids))
    cache = model.new_cache(n_positions)
    logits = prefill(cache, prompt_ids)
    found: dict[str, list[Any]] = {"ids": [], "logprobs": [], "margins": []}
    for step in range(n_ids):
        logprobs = log_softmax(logits)
        second, first = (int(id_) for id_ in np.argsort(logprobs)[-2:])
        found["ids"].append(first)
        found["logprobs"].append(float(logprobs[first]))
        found["margins"].append(float(logprobs[first] - logprobs[second]))
        if step + 1 < n_ids:
            logits = cache.step([first])[0]
    return {"prompt": prompt, "prompt_ids": prompt_ids, **found}
