"""Embeddings are transformers' last hidden states, pooled; how texts share passes does not change them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import runtime
from export.checkpoint.checkpoint import open_checkpoint as open_for_export
from export.graph import graph
from export.quantize.equalization import EqualizedTensors, from_weights
from export.quantize.precision import Float32
from runtime.graph.gpt2 import FIRST_FORMAT
from runtime.heads.embedding import Pooling, embed_ids
from runtime.model.model import Model
from tests.export.checkpoint.test_gpt import write_gpt
from tests.support.checkpoints import Floats, build_model, difference, relative_error, some_ids, write_checkpoint

CLOSE = 1e-4
Rows = list[list[int]]
ROWS: Rows = [some_ids(n, seed=n) for n in (1, 5, 96, 17, 2, 30)]


def expected(oracle: torch.nn.Module, rows: Rows, pooling: str) -> Floats:
    """By transformers: a batch that is padded on the right, pooled by its mask."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        states = oracle.transformer(ids, attention_mask=mask).last_hidden_state
    if pooling == "last":
        found: Floats = states[torch.arange(len(rows)), mask.sum(1) - 1].numpy()
        return found
    pooled: Floats = ((states * mask[..., None]).sum(1) / mask.sum(1)[:, None]).numpy()
    return pooled


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding") / "tiny"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def fp32(checkpoint: Path) -> Iterator[Model]:
    with Model(build_model(checkpoint), threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def int8(checkpoint: Path) -> Iterator[Model]:
    with Model(build_model(checkpoint, "int8"), threads=1) as model:
        yield model


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_transformers(fp32: Model, oracle: GPT2LMHeadModel, pooling: Pooling) -> None:
    found = runtime.embed(ROWS, model=fp32, pooling=pooling)
    assert (found.dtype, found.shape) == (np.float32, (len(ROWS), 64))
    assert difference(found, expected(oracle, ROWS, pooling)) < CLOSE


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_of_a_gpt_are_transformers(tmp_path: Path, pooling: Pooling) -> None:
    oracle = write_gpt(tmp_path / "gpt")
    with Model(build_model(tmp_path / "gpt"), threads=1) as model:
        assert difference(embed_ids(model, ROWS, pooling), expected(oracle, ROWS, pooling)) < CLOSE


def test_int8_embeddings_are_near(int8: Model, oracle: GPT2LMHeadModel) -> None:
    assert relative_error(runtime.embed(ROWS, model=int8), expected(oracle, ROWS, "mean")) < 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_equalization_is_undone(tmp_path: Path, tied: bool) -> None:
    """The output layer reads other numbers then, which are multiplied by its scales again."""
    oracle = write_checkpoint(tmp_path / "tiny", tie_word_embeddings=tied)
    built = build_model(tmp_path / "tiny")
    opened = open_for_export(str(tmp_path / "tiny"), tmp_path)
    tensors = EqualizedTensors(opened.config, opened.tensors, from_weights(opened.config, opened.tensors))
    assert tensors.hidden_factor is not None
    assert np.ptp(tensors.hidden_factor) > 0.1
    for name in ("model.onnx", "model.onnx_data", "SHA256SUMS"):
        (built / name).unlink()
    graph.build(opened.config, tensors, Float32(), built)
    with Model(built, threads=1) as model:
        assert difference(embed_ids(model, ROWS, "mean"), expected(oracle, ROWS, "mean")) < CLOSE


def test_texts_longer_than_a_pass_are_embedded_whole(demo_fp32: Model, torch_demo: GPT2LMHeadModel) -> None:
    rows = [some_ids(n, 8192, seed=n) for n in (500, 256, 257, 9)]
    for pooling in ("mean", "last"):
        found = embed_ids(demo_fp32, rows, pooling)
        for row, one in zip(rows, found, strict=True):
            assert difference(one[None], expected(torch_demo, [row], pooling)) < CLOSE


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.integers(1, 40).map(lambda n: some_ids(n, seed=n)), min_size=1, max_size=12),
    pooling=st.sampled_from(["mean", "last"]),
)
def test_the_batch_does_not_change_an_embedding(int8: Model, rows: Rows, pooling: Pooling) -> None:
    together = embed_ids(int8, rows, pooling)
    for row, one in zip(rows, together, strict=True):
        assert np.array_equal(embed_ids(int8, [row], pooling)[0], one)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_odd_number_of_positions_is_no_exception(fp32: Model, pooling: Pooling) -> None:
    """Some kernels compute the last of 33 rows alone, and in another order than among others."""
    rows = [some_ids(n, seed=n) for n in (33, 40, 65, 96)]
    for row, one in zip(rows, embed_ids(fp32, rows, pooling), strict=True):
        assert np.array_equal(embed_ids(fp32, [row], pooling)[0], one)


def test_a_text_is_its_ids(demo_int8: Model) -> None:
    text = "Once upon a time there was a king."
    one = runtime.embed(text, model=demo_int8)
    assert one.shape == (256,)
    assert np.array_equal(one, runtime.embed(demo_int8.encode(text), model=demo_int8))
    assert np.array_equal(runtime.embed([text, "A king."], model=demo_int8)[0], one)


def test_many_texts_are_embedded_in_order(demo_int8: Model) -> None:
    texts = [f"{n} kings" for n in range(300)]
    found = runtime.embed(texts, model=demo_int8)
    for n in (0, 127, 128, 299):
        assert np.array_equal(found[n], runtime.embed(texts[n], model=demo_int8))


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", ""], ValueError, r"texts\[1\] is '', which has no tokens of this model; give a text that has one"),
        ([[5] * 97], runtime.ContextLengthError, r"texts\[0\] has 97 tokens, and the model has 96 positions: shorten"),
        (["a" * 97], runtime.ContextLengthError, r"texts\[0\] has 97 tokens"),
        ([[5], [300]], ValueError, r"texts\[1\]\[0\] is 300; the ids of this model's vocabulary are 0 to 299"),
        ([[5]] * 200 + [[300]], ValueError, r"texts\[200\]\[0\] is 300"),
        ([], ValueError, "texts is empty"),
        (7, TypeError, "texts is 7"),
    ],
)
def test_what_cannot_be_embedded_is_named(fp32: Model, texts: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        runtime.embed(texts, model=fp32)  # type: ignore[arg-type]


def test_another_pooling_is_refused(fp32: Model) -> None:
    with pytest.raises(ValueError, match="pooling is 'max'; it must be one of mean, last"):
        runtime.embed("a", model=fp32, pooling="max")  # type: ignore[arg-type]


def test_graphs_without_hidden_states_say_so(checkpoint: Path, tmp_path: Path, demo_reference: Model) -> None:
    built = build_model(checkpoint, into=tmp_path)
    with Model(built, threads=1) as model:
        expected_text = runtime.generate([5, 6], model=model, max_new_tokens=4)
    opened = open_for_export(str(checkpoint), tmp_path)
    for name in ("model.onnx", "model.onnx_data", "SHA256SUMS"):
        (built / name).unlink()
    graph.build(opened.config, opened.tensors, Float32(), built, format_=FIRST_FORMAT)
    with Model(built, threads=1) as model:
        assert runtime.generate([5, 6], model=model, max_new_tokens=4) == expected_text
        with pytest.raises(runtime.ModelFolderError, match=r"was built by an earlier version, .*: build it again"):
            runtime.embed("a", model=model)
    with pytest.raises(runtime.ModelFolderError, match="is a plain ONNX export, whose graph does not put out hidden"):
        runtime.embed("a", model=demo_reference)


def test_a_model_names_the_function(fp32: Model) -> None:
    with pytest.raises(AttributeError, match=r"runtime\.embed\(\.\.\., model=model\) takes the model"):
        fp32.embed  # type: ignore[attr-defined]  # noqa: B018
