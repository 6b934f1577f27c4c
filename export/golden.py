"""Golden outputs: what this very model writes, recorded so that any device can check that it does the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runtime.grid import prefill
from runtime.logprobs import log_softmax
from runtime.model import Model
from runtime.text import encode

N_IDS = 24
PROMPTS = (
    "Once upon a time there was a little mouse who",
    "The quick brown fox jumps over the lazy dog. Then",
    "¿Qué tal? El niño comió una manzana y",
    "1, 2, 3, 4, 5, 6,",
)
NAME = "golden.json"
# above the largest difference, measured on the demo, between processors (`make emulate`: AVX-512 VNNI, AVX2, AVX, SSE,
# arm64 with and without dot product) and versions of onnxruntime (1.23, 1.32): fp32 0.00002, int8 0.133, int4 0.098
TOLERANCE = {"fp32": 0.001, "int8": 0.25, "int4": 0.25}


def record(folder: Path, precision: str) -> dict[str, Any]:
    """Greedy continuations of a few prompts: ids, their log-probabilities, and their margins over the second.

    The end of a text is a token like any other here.
    """
    with Model(folder) as model:
        records = [_record(model, prompt) for prompt in PROMPTS]
    return {"tolerance": TOLERANCE[precision], "records": records}


def _record(model: Model, prompt: str) -> dict[str, Any]:
    n_positions = model.config.n_positions
    prompt_ids = encode(model, prompt)[: n_positions // 2]  # a tiny context takes the beginning
    n_ids = min(N_IDS, n_positions - len(prompt_ids))
    cache = model.new_cache(n_positions)
    logits = prefill(cache, prompt_ids)
    found: dict[str, list[Any]] = {"ids": [], "logprobs": [], "margins": []}
    for step in range(n_ids):
        logprobs = log_softmax(logits[None].copy())[0]
        second, first = (int(id_) for id_ in np.argsort(logprobs)[-2:])
        found["ids"].append(first)
        found["logprobs"].append(float(logprobs[first]))
        found["margins"].append(float(logprobs[first] - logprobs[second]))
        if step + 1 < n_ids:
            logits = cache.step([first])[0]
    return {"prompt": prompt, "prompt_ids": prompt_ids, **found}
