"""A tiny model whose beam searches end early and late, as a fixture, with the checkpoint it is built from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import GPT2LMHeadModel

from runtime.model.model import Model
from tests.support.checkpoints import build_model, open_checkpoint, write_checkpoint

END = 256  # the tiny model's end of text


class Pair(NamedTuple):
    """A model and the checkpoint it was built from."""

    model: Model
    checkpoint: GPT2LMHeadModel


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat distribution over bytes, in which the end of text is one of the likelier ids everywhere."""
    folder = tmp_path_factory.mktemp("beam") / "tiny"
    checkpoint = write_checkpoint(folder, n_layer=2)
    with torch.no_grad():
        norm = checkpoint.transformer.ln_f
        norm.weight *= 0.25
        norm.bias *= 0.25
        checkpoint.transformer.wte.weight[END] = 4 * norm.bias / (norm.bias @ norm.bias)
    checkpoint.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Pair]:
    with Model(build_model(tiny_folder), threads=1) as model:
        yield Pair(model, open_checkpoint(tiny_folder))
