"""Scores by transformers alone: what `runtime.score` and the tasks are compared with."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.conftest import DEMO, REPOSITORY, shared_data
from tests.support.checkpoints import Floats, open_checkpoint, torch_logits


@functools.cache
def demo() -> GPT2LMHeadModel:
    return open_checkpoint(DEMO)


@functools.cache
def demo_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(DEMO)


def logprobs(model: GPT2LMHeadModel, ids: Sequence[int]) -> Floats:
    """[len(ids), n_vocab]: of every id that may follow each."""
    return torch.log_softmax(torch.from_numpy(torch_logits(model, ids)), -1).numpy()


def harness(context: str, continuation: str) -> tuple[list[int], Floats, bool]:
    """lm-evaluation-harness's loglikelihood of a demo text: ids, log-probabilities, whether each is the likeliest."""
    encode = demo_tokenizer().encode
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces:
        context, continuation = context[:-n_spaces], context[-n_spaces:] + continuation
    context_ids = encode(context) if context else [demo_tokenizer().bos_token_id]
    ids = encode(context + continuation)[len(encode(context)) :]
    return ids, *score(demo(), context_ids, ids)


def score(model: GPT2LMHeadModel, context_ids: Sequence[int], ids: Sequence[int]) -> tuple[Floats, bool]:
    """Log-probabilities of ids after a context, cut at the left as the harness does; whether each is the likeliest."""
    given = [*context_ids, *ids][-(model.config.n_positions + 1) :][:-1]
    rows = logprobs(model, given)[-len(ids) :]
    return rows[np.arange(len(ids)), list(ids)], bool((rows.argmax(-1) == ids).all())


def greedy(prompt: str, n: int) -> tuple[list[int], float]:
    """The demo's n likeliest tokens one after another, and their summed log-probability."""
    ids = demo_tokenizer().encode(prompt)
    n_prompt, total = len(ids), 0.0
    for _ in range(n):
        last = logprobs(demo(), ids)[-1]
        ids.append(int(last.argmax()))
        total += float(last.max())
    return ids[n_prompt:], total


def recorded(name: str) -> dict[str, Any]:
    """What other projects record of GPT-2 with its real weights."""
    entries = json.loads((shared_data("reference_outputs") / "gpt2_reference.json").read_text(encoding="utf-8"))
    (entry,) = (entry for entry in entries if entry["id"] == name)
    found: dict[str, Any] = entry
    return found


def real_gpt2() -> Path:
    """The model folder of OpenAI's GPT-2; skips the test where it is not built."""
    folder = REPOSITORY / "models" / "gpt2-fp32"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not built: python export/build.py gpt2 --precision fp32")
    return folder
