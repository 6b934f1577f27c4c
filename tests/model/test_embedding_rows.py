"""Rows of the embedding that the runtime reads from the file are those that the graph would look up."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import runtime
from export.checkpoint.checkpoint import open_checkpoint
from export.checkpoint.config import Config
from export.graph.graph import build
from export.graph.int8_cache import measure_rounding, write_int8_cache_graph
from export.graph.onnx_file import fixed_array, inline_tensor, serialize
from export.quantize.kernels import make_kernel
from export.quantize.precision import Floats, Precision
from runtime.graph.check import kernel_of
from runtime.graph.data import Graph, Value
from runtime.graph.gpt2 import FORMAT, GRAPH_FILES
from runtime.graph.reader import read_model
from runtime.model.embedding_rows import Embedding
from runtime.model.folder import ModelFolder
from runtime.model.model import Model
from tests.support.checkpoints import build_model, relative_error, write_checkpoint

N_VOCAB, N_EMBD = 301, 128
KERNELS = ("fp32", "dense", "block 32", "block 128", "int4 32", "int4 64")


class Noise:
    """Weights of noise."""

    embedding_factor = None
    hidden_factor = None

    def __init__(self, config: Config) -> None:
        self._shapes = config.tensor_shapes()
        self._noise = np.random.default_rng(0)

    def __getitem__(self, name: str) -> Floats:
        return self._noise.normal(0, 0.2, self._shapes[name]).astype(np.float32)


@pytest.fixture(scope="module", params=KERNELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rows")
    write(place, make_kernel(request.param))
    return place


def write(place: Path, precision: Precision, **sizes: Any) -> None:
    shape = {"vocab_size": N_VOCAB, "n_positions": 64, "n_embd": N_EMBD, "n_layer": 1, "n_head": 2} | sizes
    config = Config(**shape)
    build(config, Noise(config), precision, place)


def opened(place: Path, sizes: tuple[int, int] = (N_VOCAB, N_EMBD)) -> Embedding:
    model = read_model(place / GRAPH_FILES["fp32"])
    files = ModelFolder(place)
    for location in model.locations:
        files.open(location)
    return Embedding(model, kernel_of(model, "wte", sizes), files)


def looked_up(place: Path, ids: NDArray[np.int64]) -> Floats:
    """What the graph's own nodes look up."""
    model = read_model(place / GRAPH_FILES["fp32"])
    content = (place / "model.onnx_data").read_bytes()
    kernel = kernel_of(model, "wte", (N_VOCAB, N_EMBD))
    graph = Graph(inputs=[Value("input_ids", "int64", ("rows", "ids"))])
    kernel.store(graph, "wte", (N_VOCAB, N_EMBD))
    out = kernel.embed(graph, "wte", (N_VOCAB, N_EMBD), "tokens")
    graph.outputs.append(Value(out, "float32", ("rows", "ids", N_EMBD)))
    tensors = []
    for one in graph.constants.values():
        if one.value is not None:
            tensors.append(inline_tensor(one.name, fixed_array(one)))
            continue
        stored = model.constants[one.name]
        value = stored.value
        if stored.place is not None:
            value = content[stored.place.offset : stored.place.offset + stored.place.length]
        assert value is not None
        tensors.append(inline_tensor(one.name, np.frombuffer(value, one.dtype).reshape(one.shape)))
    found: Floats = onnxruntime.InferenceSession(serialize(graph, tensors)).run([out], {"input_ids": ids})[0]
    return found


def test_they_are_those_of_the_graph_exactly(folder: Path) -> None:
    ids = np.arange(N_VOCAB)[None]
    rows = np.empty((1, N_VOCAB, N_EMBD), np.float32)
    opened(folder).read(ids, rows)
    np.testing.assert_array_equal(rows, looked_up(folder, ids))


@given(st.lists(st.lists(st.integers(0, N_VOCAB - 1), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_any_ids_in_any_order(folder: Path, rows: list[list[int]]) -> None:
    ids = np.array(rows, np.int64)
    everything = np.empty((N_VOCAB, N_EMBD), np.float32)
    found = np.empty((*ids.shape, N_EMBD), np.float32)
    embedding = opened(folder)
    embedding.read(np.arange(N_VOCAB), everything)
    embedding.read(ids, found)
    np.testing.assert_array_equal(found, everything[ids])
    one = np.empty((1, 1, N_EMBD), np.float32)
    embedding.read(ids[:1, :1], one)
    np.testing.assert_array_equal(one[0, 0], everything[ids[0, 0]])


def test_without_reads_at_a_position(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    ids = np.array([[0, N_VOCAB - 1, 7]])
    expected, found = np.empty((2, *ids.shape, N_EMBD), np.float32)
    opened(folder).read(ids, expected)
    monkeypatch.delattr(os, "pread", raising=False)
    opened(folder).read(ids, found)
    np.testing.assert_array_equal(found, expected)


def test_threads_share_them(folder: Path) -> None:
    embedding = opened(folder)
    everything = np.empty((N_VOCAB, N_EMBD), np.float32)
    embedding.read(np.arange(N_VOCAB), everything)
    wrong = []

    def check(seed: int) -> None:
        for ids in np.random.default_rng(seed).integers(N_VOCAB, size=(50, 9)):
            found = np.empty((9, N_EMBD), np.float32)
            embedding.read(ids, found)
            if not np.array_equal(found, everything[ids]):
                wrong.append(seed)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_small_matrix_is_in_the_graph_itself(tmp_path: Path) -> None:
    write(tmp_path, make_kernel("dense"), vocab_size=3, n_embd=32)
    assert read_model(tmp_path / GRAPH_FILES["fp32"]).constants["wte.q"].place is None
    rows = np.empty((3, 32), np.float32)
    opened(tmp_path, (3, 32)).read(np.arange(3), rows)
    assert np.unique(rows).size > 32


def test_a_large_matrix_in_the_graph_itself_is_refused(folder: Path) -> None:
    model = read_model(folder / GRAPH_FILES["fp32"])
    inside = {name: one._replace(place=None, value=None) for name, one in model.constants.items()}
    files = ModelFolder(folder)
    with pytest.raises(runtime.ModelFolderError, match=r"holds 'wte.* itself, and not in a file beside it; build it"):
        Embedding(dataclasses.replace(model, constants=inside), kernel_of(model, "wte", (N_VOCAB, N_EMBD)), files)


def test_a_file_that_ends_before_a_row_is_told(folder: Path) -> None:
    files = ModelFolder(folder)
    size = files.open("model.onnx_data").size
    assert len(files.read_at("model.onnx_data", size - 4, 4)) == 4
    with pytest.raises(runtime.ModelFolderError, match=r"model\.onnx_data became shorter"):
        files.read_at("model.onnx_data", size - 4, 5)


@pytest.mark.parametrize("verify", ["full", "size", "off"])
def test_every_level_of_verification_finds_them(tmp_path: Path, verify: Any) -> None:
    write_checkpoint(tmp_path / "tiny")
    built = build_model(tmp_path / "tiny", "int8", 32)
    with Model(built, threads=1, cache="fp32") as fp32, Model(built, threads=1, verify=verify) as int8:
        ids = [5, 6, 7, 5]
        assert int8.cache == "int8"
        expected, found = (model.new_cache(8).extend(ids, keep=4) for model in (fp32, int8))
    assert relative_error(found, expected) < 0.05


@pytest.mark.parametrize("kernel", ["dense", "int4 32"])
def test_a_folder_of_an_earlier_format_gives_the_same_logits(tmp_path: Path, kernel: str) -> None:
    """Its graph looks the rows up itself, and attends with all heads at once."""
    write_checkpoint(tmp_path / "tiny")
    built = build_model(tmp_path / "tiny", "int8", 32)
    earlier, now = (read_logits(tmp_path, built, make_kernel(kernel), format_) for format_ in ("2", FORMAT))
    np.testing.assert_allclose(now, earlier, rtol=1e-5, atol=1e-5)


def read_logits(work: Path, built: Path, precision: Precision, format_: str) -> Floats:
    """Write the graphs of a folder again, in a format; the logits of a prompt and of two steps after it."""
    checkpoint = open_checkpoint(str(work / "tiny"), work)
    for name in ("model.onnx", "model.onnx_data", GRAPH_FILES["int8"], "SHA256SUMS"):
        (built / name).unlink(missing_ok=True)
    build(checkpoint.config, checkpoint.tensors, precision, built, format_=format_)
    write_int8_cache_graph(built, measure_rounding(built, [[5, 6, 7, 8, 9]]))
    with Model(built, threads=1, cache="int8") as model:
        cache = model.new_cache(8)
        passes = [cache.extend([5, 6, 7, 5], keep=4), cache.step([8]).copy(), cache.step([9]).copy()]
    result: Floats = np.concatenate(passes)
    return result
