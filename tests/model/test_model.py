"""Opening a model folder, and what is said of one that is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime import generate, load
from runtime.model.model import Model

Damage = Callable[[Path], object]


@pytest.fixture
def folder(demo_fp32_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder, to be damaged; without checksums, which would tell before anything else does."""
    ignored = shutil.ignore_patterns("SHA256SUMS")
    return Path(shutil.copytree(demo_fp32_folder, tmp_path / "damaged", ignore=ignored))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_graph(path: Path) -> None:
    """A graph that has nothing of a GPT-2."""
    value = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("logits", TensorProto.INT64, ["n"])
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "other", [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_what_a_model_is(demo_fp32: Model, demo_int8: Model, demo_reference: Model) -> None:
    for model in (demo_fp32, demo_int8, demo_reference):
        config = model.config
        assert (config.n_layer, config.n_head, config.n_embd, config.head_dim) == (6, 4, 256, 64)
        assert (config.n_positions, config.vocab_size) == (512, 8192)
        assert (config.bos_token_id, config.eos_token_ids) == (0, {0})
        assert str(model.folder) in repr(model)
    assert [model.is_fused for model in (demo_fp32, demo_int8, demo_reference)] == [True, True, False]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such-model.*build\.py"):
        load(tmp_path / "no-such-model")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises((FileNotFoundError, NotADirectoryError), match=r"model\.onnx"):
        load(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load(folder)
    assert str(folder / name) in str(error.value)


def test_a_checkpoint_that_is_not_built_says_how_to_build(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(Path(__file__).parents[2] / "models" / "demo" / name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.onnx.*export/build\.py"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", halve),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("config.json", lambda path: path.write_text("[]")),
        ("config.json", lambda path: path.write_text("")),
        ("generation_config.json", lambda path: path.write_text("{")),
        ("tokenizer.json", halve),
        ("tokenizer.json", lambda path: path.write_text("{}")),
        ("model.onnx", halve),
        ("model.onnx", lambda path: path.write_bytes(b"")),
        ("model.onnx", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n")),
        ("model.onnx", write_graph),
        ("model.onnx_data", halve),
        ("model.onnx_data", Path.unlink),
    ],
)
def test_a_damaged_file_is_a_value_error_naming_it(folder: Path, name: str, damage: Damage) -> None:
    damage(folder / name)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(folder)
    assert name in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("model_type", ["gpt_neo", "llama", None])
def test_another_model_type_is_refused_by_name(folder: Path, model_type: str | None) -> None:
    edit_json(folder / "config.json", model_type=model_type)
    with pytest.raises(ValueError, match=rf"config\.json.*{model_type}.*gpt2"):
        load(folder)


@pytest.mark.parametrize("key", ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"])
@pytest.mark.parametrize("wrong", [None, 0, -1, "6", 6.0, True], ids=repr)
def test_a_size_that_is_no_count_is_named(folder: Path, key: str, wrong: Any) -> None:
    edit_json(folder / "config.json", **{key: wrong})
    with pytest.raises(ValueError, match=rf"config\.json.*{key}"):
        load(folder)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("wrong", ["0", 1.5, True, {"id": 0}, ["0"], [[0]]], ids=repr)
def test_a_token_id_that_is_none_is_named(folder: Path, key: str, wrong: Any) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", **{key: wrong})
    with pytest.raises(ValueError, match=rf"config\.json.*{key}"):
        load(folder)


def test_the_ids_of_generation_config_come_first(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[5, 7], bos_token_id=3)
    with load(folder) as model:
        assert (model.config.bos_token_id, model.config.eos_token_ids) == (3, {5, 7})


def test_the_ids_of_config_serve_where_there_is_no_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", eos_token_id=None, bos_token_id=9)
    with load(folder) as model:
        assert (model.config.bos_token_id, model.config.eos_token_ids) == (9, frozenset())


def test_without_bos_an_empty_prompt_is_refused(folder: Path) -> None:
    edit_json(folder / "generation_config.json", bos_token_id=None)
    with load(folder) as model, pytest.raises(ValueError, match="empty"):
        generate("", model=model)


@pytest.mark.parametrize(
    "sizes", [{"n_layer": 5}, {"n_layer": 7}, {"n_head": 8}, {"n_embd": 512}, {"vocab_size": 9000}], ids=repr
)
def test_sizes_that_are_not_the_graphs_are_refused(folder: Path, sizes: dict[str, int]) -> None:
    edit_json(folder / "config.json", **sizes)
    with pytest.raises(ValueError), load(folder) as model:
        generate("Once upon a time", model=model)


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=8000)
    with pytest.raises(ValueError, match=r"tokenizer\.json.*8,191.*8,000"):
        load(folder)


def test_a_newer_format_says_to_upgrade(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    next(entry for entry in graph.metadata_props if entry.key == "gpt2_edge_format").value = "99"
    onnx.save(graph, folder / "model.onnx")
    with pytest.raises(ValueError, match=r"99.*upgrade"):
        load(folder)


def test_the_only_graph_of_a_folder_may_have_another_name(folder: Path, demo_fp32: Model) -> None:
    (folder / "model.onnx").rename(folder / "model_quantized.onnx")
    with load(folder) as model:
        assert generate("Once", model=model) == generate("Once", model=demo_fp32)
    shutil.copy(folder / "model_quantized.onnx", folder / "model_other.onnx")
    with pytest.raises(FileNotFoundError, match=r"model_other\.onnx, model_quantized\.onnx"):
        load(folder)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True], ids=repr)
def test_threads_are_a_count(demo_fp32_folder: Path, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"threads.*(whole number|at least 1)"):
        load(demo_fp32_folder, threads=wrong)


def test_threads_are_not_without_end(demo_fp32_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"threads is 100000; it must be at least 1 and at most \d+"):
        load(demo_fp32_folder, threads=100_000)


@pytest.mark.parametrize("threads", [1, 2, np.int64(1), None])
def test_threads_do_not_change_the_text(demo_fp32_folder: Path, demo_fp32: Model, threads: Any) -> None:
    with load(demo_fp32_folder, threads=threads) as model:
        assert generate("Once", model=model, max_new_tokens=20) == generate("Once", model=demo_fp32, max_new_tokens=20)


def test_weights_that_are_not_prepacked_write_the_same(demo_fp32_folder: Path, demo_fp32: Model) -> None:
    with Model(demo_fp32_folder, prepack=False) as model:
        assert generate("Once", model=model, max_new_tokens=20) == generate("Once", model=demo_fp32, max_new_tokens=20)
