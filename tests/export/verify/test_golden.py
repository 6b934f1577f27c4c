"""Recorded outputs: the greedy ids of the runtime, with the numbers of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtime
from export.verify import golden
from runtime.diagnostics.check import check_folder
from runtime.model.integrity import GOLDEN
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.support.checkpoints import build_model, open_checkpoint, write_checkpoint


def records(folder: Path) -> list[dict[str, Any]]:
    """What golden.json holds."""
    stored = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    assert stored["tolerance"] in golden.TOLERANCE.values()
    found: list[dict[str, Any]] = stored["records"]
    return found


def test_the_ids_are_the_greedy_ones(demo_int8_folder: Path, demo_int8: Model) -> None:
    for record in records(demo_int8_folder):
        completion = runtime.complete(record["prompt"], model=demo_int8, max_new_tokens=golden.N_IDS, temperature=0)[0]
        n = len(completion.ids)  # generation ends with the text, the record does not
        assert n
        assert completion.ids == record["ids"][:n]
        assert record["logprobs"][:n] == pytest.approx(completion.logprobs, abs=1e-4)


def test_the_numbers_are_those_of_transformers(demo_fp32_folder: Path) -> None:
    oracle = open_checkpoint(DEMO)
    for record in records(demo_fp32_folder):
        prompt_ids, ids = record["prompt_ids"], record["ids"]
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt_ids + ids[:-1]])).logits[0, len(prompt_ids) - 1 :]
        logprobs = torch.log_softmax(logits.double(), -1).numpy()
        ordered = np.sort(logprobs, -1)
        assert logprobs.argmax(-1).tolist() == ids
        assert record["logprobs"] == pytest.approx(ordered[:, -1].tolist(), abs=1e-3)
        assert record["margins"] == pytest.approx((ordered[:, -1] - ordered[:, -2]).tolist(), abs=1e-3)


def test_a_tiny_context_takes_the_beginning_and_what_room_there_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", n_positions=16)
    folder = build_model(tmp_path / "tiny")
    for record in records(folder):
        assert (len(record["prompt_ids"]), len(record["ids"])) == (8, 8)
    assert check_folder(folder).passed


def test_every_prompt_is_recorded(demo_int8_folder: Path) -> None:
    found = records(demo_int8_folder)
    assert [record["prompt"] for record in found] == list(golden.PROMPTS)
    for record in found:
        assert len(record["ids"]) == len(record["logprobs"]) == len(record["margins"]) == golden.N_IDS
        assert max(record["logprobs"]) <= 0 <= min(record["margins"])
