"""Golden outputs: recorded greedy continuations, with which `gpt2-edge check` compares what a device computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.verify import own_writing
from runtime._math import log_softmax
from runtime.heads.classification import label_logits
from runtime.model.model import Model
from runtime.model.prefill import prefill
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.tokenization.encode import encode, encode_prompt

N_IDS = 24
# The length of a prompt that the model writes itself.
N_PROMPT_IDS = 12
PROMPTS = (
    "Once upon a time there was a little mouse who",
    "The quick brown fox jumps over the lazy dog. Then",
    "¿Qué tal? El niño comió una manzana y",
    "1, 2, 3, 4, 5, 6,",
)
# Differences of log-probabilities that are allowed. They are above the largest difference measured on the demo between
# processors (`make emulate`: AVX-512 VNNI, AVX2, AVX, SSE, arm64 with and without dot product) and between versions of
# onnxruntime (1.23, 1.32): fp32 0.00002, int8 0.133, int4 0.098.
TOLERANCE = {"fp32": 0.001, "int8": 0.25, "int4": 0.25}
# Differences of scores that are allowed: where a log-probability differs by 0.25, no probability differs by more.
LABEL_TOLERANCE = {"fp32": 0.001, "int8": 0.07, "int4": 0.07}


def record(folder: Path, precision: str) -> dict[str, Any]:
    """Greedy continuations of a few prompts: ids, log-probabilities, and margins over the second likeliest token.

    Decoding goes on after eos_token_id, as after any other token.
    """
    with Model(folder) as model:
        records = [_record(model, *_begin(model, prompt, seed)) for seed, prompt in enumerate(PROMPTS)]
    return {"tolerance": TOLERANCE[precision], "records": records}


def record_labels(folder: Path, precision: str) -> dict[str, Any]:
    """The scores that a classifier gives a few texts: [n_labels], of a classifier of tokens [n_tokens, n_labels]."""
    with Model(folder) as model:
        head = model.check_classifier()
        rows = [_label_ids(model, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
        scores = [head.scores_of(logits).tolist() for logits in label_logits(model, rows)]
    records = [{"ids": ids, "scores": found} for ids, found in zip(rows, scores, strict=True)]
    return {"tolerance": LABEL_TOLERANCE[precision], "records": records}


def _label_ids(model: Model, prompt: str, seed: int) -> list[int]:
    """The ids of a text; random ones where the vocabulary cannot express it."""
    n_most = model.config.n_positions
    if model.has_tokenizer and own_writing.can_write(model.tokenizer, prompt):
        return encode(model, prompt)[:n_most]
    generator = np.random.default_rng(seed)
    ids: list[int] = generator.integers(0, model.config.vocab_size, min(N_PROMPT_IDS, n_most)).tolist()
    return ids


def _begin(model: Model, prompt: str, seed: int) -> tuple[str, list[int]]:
    """The prompt and its ids; a prompt that the model writes itself where its vocabulary cannot express this one."""
    # A model with a tiny context takes only the beginning of the prompt.
    n_most = model.config.n_positions // 2
    if own_writing.can_write(model.tokenizer, prompt):
        return prompt, encode_prompt(model, prompt)[:n_most]
    ids = own_writing.write_prompt(model, min(N_PROMPT_IDS, n_most), seed)
    return Detokenizer(model.tokenizer).decode(ids), ids


def _record(model: Model, prompt: str, prompt_ids: list[int]) -> dict[str, Any]:
    """The greedy continuation of one prompt."""
    n_positions = model.config.n_positions
    n_ids = min(N_IDS, n_positions - len(prompt_ids))
    cache = model.new_cache(n_positions)
    logits = prefill(cache, prompt_ids)
    record: dict[str, list[Any]] = {"ids": [], "logprobs": [], "margins": []}
    for step in range(n_ids):
        logprobs = log_softmax(logits)
        second, first = (int(id_) for id_ in np.argsort(logprobs)[-2:])
        record["ids"].append(first)
        record["logprobs"].append(float(logprobs[first]))
        record["margins"].append(float(logprobs[first] - logprobs[second]))
        if step + 1 < n_ids:
            logits = cache.step([first])[0]
    return {"prompt": prompt, "prompt_ids": prompt_ids, **record}
