"""The int8 key-value cache: what it holds, what it computes, and when a load takes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import build
from export.graph.int8_cache import MARGIN, measure_rounding, write_int8_cache_graph
from runtime import load
from runtime.graph.gpt2 import GRAPH_FILES
from runtime.graph.reader import read_model
from runtime.model.model import Model
from runtime.model.prefill import prefill
from tests.support.building import QUICK
from tests.support.checkpoints import CLOSE, TINY, some_ids, write_checkpoint
from tests.support.plain_gpt2 import logits

N_HEAD = TINY["n_head"]
HEAD_DIM = TINY["n_embd"] // N_HEAD


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its fp32 build with an int8 cache as coarse as it gets, so that its rounding shows."""
    place = tmp_path_factory.mktemp("int8-cache")
    write_checkpoint(place / "checkpoint")
    build.main([str(place / "checkpoint"), "--precision", "fp32", *QUICK, "--output", str(place / "model")])
    (place / "model" / "SHA256SUMS").unlink()
    rounding = measure_rounding(place / "model", [some_ids(60, 257)])
    write_int8_cache_graph(place / "model", rounding._replace(scales=8 * rounding.scales))
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> Any:
    with Model(place / "model", cache="int8") as opened:
        yield opened


@pytest.fixture(scope="module")
def rounding(place: Path) -> Any:
    """Scales and centers, each [n_layer, 2, n_head, head_dim], read from the graphs."""
    graph = read_model(place / "model" / GRAPH_FILES["int8"]).constants
    shape = (TINY["n_layer"], 2, N_HEAD, HEAD_DIM)
    names = [f"h.{layer}.attn.{part}_scale" for layer in range(TINY["n_layer"]) for part in ("key", "value")]
    scales = np.array([np.frombuffer(graph[name].value or b"", np.float32) for name in names]).reshape(shape)
    centers = np.zeros(shape, np.float32)
    for layer in range(TINY["n_layer"]):
        name = f"h.{layer}.attn.c_attn.bias"
        moved = np.frombuffer(graph[name].value or b"", np.float32)
        bias = state_of(place)[f"transformer.{name}"].numpy()
        query, centers[layer, 0], value = (bias - moved).reshape(3, N_HEAD, HEAD_DIM)
        assert not query.any()
        assert not value.any()
    return scales, centers


def state_of(place: Path) -> dict[str, torch.Tensor]:
    """The weights as `plain_gpt2` takes them, products transposed."""
    from safetensors.torch import load_file

    state = load_file(place / "checkpoint" / "model.safetensors")
    products = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: tensor.T if name.endswith(products) else tensor for name, tensor in state.items()}
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


@pytest.mark.parametrize("n_prompt", [1, 2, 40, 60])
def test_logits_are_those_of_torch_with_rounded_keys_and_values(
    place: Path, model: Model, rounding: Any, n_prompt: int
) -> None:
    """Of a prompt in one pass, then of single steps."""
    ids = some_ids(60, 257)
    expected = logits(state_of(place), ids, N_HEAD, "tanh", rounding)
    cache = model.new_cache(64)
    found = [*cache.extend(ids[:n_prompt], keep=n_prompt)]
    found += [cache.step([id_])[0].copy() for id_ in ids[n_prompt:]]
    # A key that lies between two integers may be rounded either way.
    close = np.abs(np.array(found) - expected).max(-1) < CLOSE * expected.std()
    assert close.mean() > 0.9
    without = logits(state_of(place), ids, N_HEAD, "tanh")
    assert np.abs(expected - without).max() > 1000 * CLOSE * expected.std()


def test_a_later_pass_reads_what_the_cache_holds(model: Model) -> None:
    ids = some_ids(60, 257)
    whole = model.new_cache(60).extend(ids, keep=20)
    cache = model.new_cache(90)
    cache.extend(ids[:7])
    cache.extend(ids[7:40])
    np.testing.assert_allclose(cache.extend(ids[40:], keep=20), whole, atol=0.02 * whole.std())


def test_the_cache_holds_rounded_keys_and_values(place: Path, model: Model, rounding: Any) -> None:
    scales, centers = rounding
    ids = some_ids(50, 257)
    held = model.new_cache(64)
    prefill(held, ids)
    with Model(place / "model", cache="fp32") as exact:
        cache = exact.new_cache(64)
        prefill(cache, ids)
        expected = (cache.read_row(0, 50)[0] - centers[0][:, :, None]) / scales[0][:, :, None]
    found = held.read_row(0, 50)
    assert found.dtype == np.int8
    # The first layer does not depend on attention.
    assert np.abs(found[0] - expected).max() <= 0.5 + 1e-3


def test_scales_are_of_the_ranges_with_a_margin(place: Path) -> None:
    texts = [some_ids(40, 257, seed=seed) for seed in range(3)]
    found = []
    with Model(place / "model", cache="fp32") as exact:
        for ids in texts:
            cache = exact.new_cache(40)
            prefill(cache, ids)
            found.append(cache.read_row(0, 40))
    keys, values = np.concatenate(found, axis=3).swapaxes(0, 1)
    scales, centers = measure_rounding(place / "model", texts)
    np.testing.assert_allclose(centers, (keys.max(axis=2) + keys.min(axis=2)) / 2, atol=1e-6)
    np.testing.assert_allclose(scales[:, 0], MARGIN * np.ptp(keys, axis=2) / 2 / 127, rtol=1e-5)
    np.testing.assert_allclose(scales[:, 1], MARGIN * np.abs(values).max(axis=2) / 127, rtol=1e-6)


def test_rows_of_a_step_do_not_depend_on_each_other(demo_int8: Model) -> None:
    assert demo_int8.cache == "int8"
    prompts = [some_ids(n, 257, seed=n) for n in (3, 40, 17)]
    together = demo_int8.new_cache(64, 3)
    for row, ids in enumerate(prompts):
        prefill(together, ids, row)
    found = together.step([5, 6, 7]).copy()
    for row, ids in enumerate(prompts):
        alone = demo_int8.new_cache(64)
        prefill(alone, ids)
        np.testing.assert_array_equal(found[row], alone.step([5 + row])[0])


# the choice -----------------------------------------------------------------------------------------------------------


def test_a_load_takes_int8_where_the_folder_has_it(demo_int8_folder: Path, demo_fp32_folder: Path) -> None:
    with load(demo_int8_folder) as model, load(demo_int8_folder, cache="fp32") as exact:
        assert (model.cache, exact.cache) == ("int8", "fp32")
        assert model.new_cache(8).read_row(0, 8).dtype == np.int8
        assert exact.new_cache(8).read_row(0, 8).dtype == np.float32
        assert model.identity == exact.identity
    with load(demo_fp32_folder) as model:
        assert model.cache == "fp32"


def test_what_cannot_be_loaded(demo_fp32_folder: Path, demo_int8_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_int8_cache\.onnx, which cache='int8' needs: builds at int8"):
        load(demo_fp32_folder, cache="int8")
    wrong: Any = "fp16"
    with pytest.raises(ValueError, match="cache is 'fp16'; 'fp32', 'int8' or None is expected"):
        load(demo_int8_folder, cache=wrong)


def test_a_graph_that_was_added_later_is_refused(demo_int8_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_int8_folder, tmp_path / "copy"))
    sums = folder / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "int8_cache" not in line), encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"model_int8_cache\.onnx is not listed in SHA256SUMS"):
        load(folder)
