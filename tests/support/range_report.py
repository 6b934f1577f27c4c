"""What the runtime writes, as JSON on standard output: run in environments with other versions of what it requires.

    python range_report.py FP32_FOLDER INT8_FOLDER SCRATCH_FOLDER

Imports nothing but the runtime and what the runtime requires.
"""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import runtime
from runtime.diagnostics.check import check_folder
from runtime.tokenization.encode import encode

PROMPTS = ["Once upon a time there was a little mouse who", "¿Qué tal?", "The old king had three sons. " * 20]
TEXTS = ["", " ", "naïve café", "東京 \U0001f600", "e\u0301\u200d", "a\x00b", "don't\r\n\tstop  ", "<|endoftext|>"]
SAMPLING = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}
CHOICE = "The trophy does not fit in the case because the _ is too big."


def report(fp32: Path, int8: Path, scratch: Path) -> dict[str, Any]:
    """`found` is the same everywhere; `near`, log-probabilities, may differ in the last digits, and more at int8."""
    with runtime.load(fp32) as model:
        found = {**written(model), "tokens": [encode(model, text) for text in TEXTS]}
        near = {**scored(model), "prefix": shared(model, scratch / "text.prefix")}
    with runtime.load(int8, verify="full") as model:
        pieces = "".join(runtime.stream(PROMPTS[0], model=model))
        assert pieces == runtime.generate(PROMPTS[0], model=model)
        near |= {f"int8 {name}": value for name, value in scored(model).items()}
    checks = [str(check) for check in map(check_folder, (fp32, int8)) if not check.passed]
    versions = {name: version(name) for name in ("numpy", "onnxruntime", "tokenizers")}
    return {"versions": versions, "found": found, "near": near, "failed checks": checks, "runtime": runtime.__file__}


def written(model: runtime.Model) -> dict[str, Any]:
    """Continuations by every way of decoding: ids and reasons."""
    ways: dict[str, dict[str, Any]] = {
        "greedy": {"max_new_tokens": 40},
        "sampled": {"n": 2, "seed": 7, **SAMPLING},
        "beams": {"num_beams": 4, "n": 2},
        "lookup": {"lookup": 8},
        "slid": {"overflow": "slide", "max_new_tokens": model.config.n_positions},
        "stopped": {"stop": [" the", "\n"], "token_healing": True},
        "biased": {"logit_bias": {262: -5.0}, "no_repeat_ngram_size": 2, "presence_penalty": 0.5},
    }
    done = {way: runtime.complete(PROMPTS, model=model, **options) for way, options in ways.items()}
    return {way: [(c.ids, c.finish_reason, c.text) for c in completions] for way, completions in done.items()}


def scored(model: runtime.Model) -> dict[str, float]:
    """Log-probabilities of given and of written texts, and of a choice."""
    first = [completion.logprob for completion in runtime.complete(PROMPTS, model=model, max_new_tokens=1)]
    return {
        **{f"first {index}": logprob for index, logprob in enumerate(first)},
        "continuation": runtime.score(" little girl", context=PROMPTS[0], model=model).logprob / 2,
        "text": math.log(runtime.score_text(PROMPTS[2] * 5, model=model, stride=64).perplexity),
        "choice": runtime.perform("choose", CHOICE, model=model, options=["trophy", "case"]).confidence,
    }


def shared(model: runtime.Model, path: Path) -> float:
    """What a prefix that was kept in a file and read again gives."""
    runtime.prefix(PROMPTS[2] * 2, model=model).save(path)
    kept = runtime.load_prefix(path, model=model)
    (with_prefix,) = runtime.complete(PROMPTS[2] * 2 + "One", prefix=kept)
    (without,) = runtime.complete(PROMPTS[2] * 2 + "One", model=model)
    assert with_prefix.ids == without.ids
    return with_prefix.logprob / with_prefix.n_tokens


if __name__ == "__main__":
    json.dump(report(*map(Path, sys.argv[1:4])), sys.stdout)
