"""A prefix on disk, as fixtures, with the models that it is for and not for; and other writers of such files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

import runtime
from runtime import Prefix, load
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.support.building import byte_tokenizer
from tests.support.prefixing import build_both

TEXT = "¿Qué tal? 🎉 " + "abc def. " * (PREFILL_STEP // 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model in two precisions, and with another tokenizer, whose ids are one less."""
    made = build_both(tmp_path_factory.mktemp("prefix-file") / "tiny")
    made["other"] = made["int8"].parent / "other"
    shutil.copytree(made["int8"], made["other"])
    tokenizer = json.loads(byte_tokenizer(257).to_str())
    tokenizer["model"]["vocab"] = {token: (id_ - 1) % 256 for token, id_ in tokenizer["model"]["vocab"].items()}
    (made["other"] / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (made["other"] / "SHA256SUMS").unlink()
    return made


@pytest.fixture(scope="module")
def tiny(folders: dict[str, Path]) -> Iterator[Model]:
    with load(folders["int8"]) as model:
        yield model


@pytest.fixture(scope="module")
def prefix(tiny: Model) -> Prefix:
    return runtime.prefix(TEXT, model=tiny)


@pytest.fixture
def path(prefix: Prefix, tmp_path: Path) -> Path:
    """A saved prefix."""
    prefix.save(tmp_path / "story.prefix")
    return tmp_path / "story.prefix"


def save_elsewhere(path: Path, about: dict[str, str], tensor: Any) -> None:
    save_file({"keys_values": tensor}, path, metadata=about)
