"""Texts to share, a tiny model to share them with, as a fixture, and completions to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import load
from runtime.generation.completion import Completion
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.conftest import DEMO
from tests.support.checkpoints import build_model, write_checkpoint

STORY = (DEMO / "evaluation.txt").read_text(encoding="utf-8")


def build_both(checkpoint: Path) -> dict[str, Path]:
    """A tiny model of four steps, whose tokens are bytes, in both precisions."""
    write_checkpoint(checkpoint, n_positions=4 * PREFILL_STEP, n_layer=2)
    return {"int8": build_model(checkpoint, "int8", 64), "fp32": build_model(checkpoint)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_both(tmp_path_factory.mktemp("prefix") / "tiny")


@pytest.fixture(scope="module", params=["int8", "fp32"])
def tiny(folders: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(folders[request.param]) as model:
        yield model


def letters(n: int, seed: int = 0) -> str:
    """A text of so many tokens of the tiny model."""
    return "".join(np.random.default_rng(seed).choice(list("abcdefgh .,"), n))


def facts(completions: list[Completion]) -> list[Any]:
    """All but how long it took."""
    return [dataclasses.replace(one, prefill_seconds=0, decode_seconds=0) for one in completions]
