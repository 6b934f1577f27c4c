"""What config.json may say: sizes and ids within bounds, each error naming file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import config as checkpoint_config
from runtime import _json
from runtime.model.config import LIMITS, MAX_END_IDS, MAX_ID, SIZES, read_config

PLAIN: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 64,
    "n_positions": 32,
    "vocab_size": 100,
    "bos_token_id": 99,
    "eos_token_id": 99,
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(PLAIN | changes), encoding="utf-8")
    return folder


def test_sizes_and_ids(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, eos_token_id=[7, 8, None]))
    assert [getattr(config, name) for name in SIZES] == [2, 4, 64, 32, 100]
    assert (config.bos_token_id, config.eos_token_ids, config.head_dim) == (99, {7, 8}, 16)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}', encoding="utf-8")
    assert read_config(tmp_path).eos_token_ids == {5}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("wrong", [None, 0, -1, True, 1.5, "2", [2], 10**9, 10**400])
def test_a_size_that_is_none_is_refused_by_both_stages(tmp_path: Path, name: str, wrong: object) -> None:
    write(tmp_path, **{name: wrong})
    for read in (read_config, lambda folder: checkpoint_config.read(folder / "config.json")):
        with pytest.raises(ValueError, match=rf"config\.json: {name} is .*(is expected|is allowed)") as error:
            read(tmp_path)
        assert len(str(error.value)) < len(str(tmp_path)) + 200


def test_the_largest_sizes_are_taken(tmp_path: Path) -> None:
    sizes = {name: LIMITS[name] for name in SIZES}
    assert read_config(write(tmp_path, **sizes)).n_layer == LIMITS["n_layer"]
    with pytest.raises(ValueError, match="n_inner is 1000000000; at most"):
        checkpoint_config.read(write(tmp_path, n_inner=10**9) / "config.json")


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("wrong", ["1", 1.5, True, {}, MAX_ID + 1, -(10**400)])
def test_an_id_that_is_none_is_refused_by_both_stages(tmp_path: Path, key: str, wrong: object) -> None:
    write(tmp_path, **{key: wrong})
    for read in (read_config, lambda folder: checkpoint_config.read(folder / "config.json")):
        with pytest.raises(ValueError, match=rf"config\.json: {key} has "):
            read(tmp_path)


def test_many_ends_are_refused(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=[0] * (MAX_END_IDS + 1))
    with pytest.raises(ValueError, match="eos_token_id has 1,025 ids"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="eos_token_id has 1,025 ids"):
        checkpoint_config.read(tmp_path / "config.json")


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, '{"n_layer": ' + "9" * 5000 + "}"])
def test_json_that_python_does_not_read_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for read in (read_config, lambda folder: checkpoint_config.read(folder / "config.json")):
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            read(tmp_path)


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(_json, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"config\.json has more than 10 bytes"):
        read_config(tmp_path)
