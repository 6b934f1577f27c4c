"""Other runtimes: compares their greedy ids with ours, and finds Node and its packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime import complete, load
from runtime.model.model import Model

NODE = Path(__file__).parents[1] / "node"
PROMPTS = ["Once upon a time there was a little mouse who", "¿Qué tal? The ", "a"]
N_NEW = 110
# Other versions of onnxruntime and other processors round int8 products differently.
# Where two ids are this close, either may be the likeliest.
NEAR_TIE = {"demo_fp32": 1e-4, "demo_int8": 0.1, "demo_int4": 0.1}


def check_same_ids(written: Sequence[Sequence[int]], model: Model, near_tie: float) -> None:
    """`written`: greedy ids of another runtime after each of PROMPTS, with or without the end of text.

    Other runtimes open the graph with an fp32 cache.
    """
    with load(model.folder, cache="fp32") as exact:
        ours = complete(PROMPTS, model=exact, max_new_tokens=N_NEW, logprobs=5)
    assert len(written) == len(ours)
    for ids, completion in zip(written, ours, strict=True):
        expected = list(completion.ids)
        if completion.finish_reason == "eos":
            # The end of text is not among our ids.
            expected += sorted(model.config.eos_token_ids)[: len(ids) - len(expected)]
        if list(ids) == expected:
            continue
        place = next(i for i, (theirs, mine) in enumerate(zip(ids, expected, strict=False)) if theirs != mine)
        likeliest = completion.top_logprobs[place]
        gap = completion.logprobs[place] - likeliest.get(ids[place], -float("inf"))
        assert gap < near_tie, f"{ids[place]} instead of {expected[place]} at {place}, {gap:.3f} less likely"


def node() -> tuple[str, Path]:
    """Node, and the folder of its packages; skips the test where one is missing, but in continuous integration."""
    found = shutil.which("node")
    if found and (NODE / "node_modules" / "@huggingface" / "transformers").is_dir():
        return found, NODE
    missing = "Node 20 or newer and `npm ci --ignore-scripts` in tests/node are needed"
    assert "CI" not in os.environ, missing
    pytest.skip(missing)
