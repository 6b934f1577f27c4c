"""The fused graph against transformers: the same logits however the tokens come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import GPT2LMHeadModel

from runtime.model.model import Model
from tests.conftest import DEMO
from tests.support.checkpoints import (
    TINY,
    Floats,
    build_model,
    difference,
    greedy,
    in_passes,
    in_steps,
    open_checkpoint,
    some_ids,
    torch_greedy,
    torch_logits,
    write_checkpoint,
)

CLOSE = 1e-4  # of the spread of the logits
Pair = tuple[Model, GPT2LMHeadModel]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "tiny"
    write_checkpoint(folder, tie_word_embeddings=False)  # tied and random, it only repeats its last token
    return folder


@pytest.fixture(scope="module")
def tiny_fp32(tiny: Path) -> Iterator[Model]:
    with Model(build_model(tiny), threads=2) as model:
        yield model


@pytest.fixture(scope="module", params=[32, 64])
def tiny_int8(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    # The graph that other tools open.
    with Model(build_model(tiny, "int8", request.param), threads=2, cache="fp32") as model:
        yield model


@pytest.fixture(scope="module")
def tiny_pair(tiny: Path, tiny_fp32: Model) -> Pair:
    return tiny_fp32, open_checkpoint(tiny)


@pytest.fixture(scope="module")
def demo_pair(demo_fp32: Model) -> Pair:
    return demo_fp32, open_checkpoint(DEMO)


@pytest.fixture(scope="module")
def story(demo_fp32: Model) -> list[int]:
    ids: list[int] = demo_fp32.tokenizer.encode((DEMO / "evaluation.txt").read_text(encoding="utf-8")).ids
    return ids[:400]


@pytest.mark.parametrize("ends", [[], [1], [80], [17, 18, 60], [31, 32, 33, 34]])
def test_tiny_logits_are_transformers_whatever_the_passes(tiny_pair: Pair, ends: list[int]) -> None:
    ids = some_ids(96)
    assert difference(in_passes(tiny_pair[0], ids, ends), torch_logits(tiny_pair[1], ids)) < CLOSE


@pytest.mark.parametrize("ends", [[], [256], [5, 6, 300], [399]])
def test_demo_logits_are_transformers_whatever_the_passes(demo_pair: Pair, story: list[int], ends: list[int]) -> None:
    assert difference(in_passes(demo_pair[0], story, ends), torch_logits(demo_pair[1], story)) < CLOSE


def test_logits_token_by_token_are_transformers(tiny_pair: Pair, demo_pair: Pair, story: list[int]) -> None:
    for (model, oracle), ids in ((tiny_pair, some_ids(96)), (demo_pair, story)):
        assert difference(in_steps(model, ids), torch_logits(oracle, ids)) < CLOSE


def test_greedy_ids_are_transformers(demo_pair: Pair, story: list[int]) -> None:
    ids = greedy(demo_pair[0], story[:24], 128)
    assert ids == torch_greedy(demo_pair[1], story[:24], ids)


def test_greedy_ids_of_a_tiny_model_fill_its_context(tiny_pair: Pair) -> None:
    ids = greedy(tiny_pair[0], [7], 95)
    assert len(set(ids)) > 4
    assert ids == torch_greedy(tiny_pair[1], [7], ids)


def test_steps_on_the_cache_are_passes_from_scratch(tiny_fp32: Model) -> None:
    ids = some_ids(48)
    from_scratch = [tiny_fp32.new_cache(n).extend(ids[:n])[-1] for n in range(1, len(ids) + 1)]
    assert difference(in_steps(tiny_fp32, ids), np.stack(from_scratch)) < CLOSE


def test_int8_steps_on_the_cache_stay_near_one_pass(tiny_int8: Model, tiny_pair: Pair) -> None:
    ids = some_ids(96)
    in_one, expected = in_passes(tiny_int8, ids, []), torch_logits(tiny_pair[1], ids)
    rounding = np.square(in_one - expected).mean()
    assert np.square(in_steps(tiny_int8, ids) - in_one).mean() < rounding


def test_int8_prefill_in_passes_of_256_stays_near_one_pass(demo_int8: Model, demo_pair: Pair, story: list[int]) -> None:
    in_one, expected = in_passes(demo_int8, story, []), torch_logits(demo_pair[1], story)
    rounding = np.square(in_one - expected).mean()
    assert np.sqrt(rounding) < 0.05 * expected.std()
    assert np.square(in_passes(demo_int8, story, [256]) - in_one).mean() < rounding


def feeds(rows: list[list[int]], mask: list[list[int]]) -> dict[str, np.ndarray]:
    """What any runtime gives the graph at first: no past."""
    positions = np.tile(np.arange(len(rows[0])), (len(rows), 1))
    past = np.empty((len(rows), TINY["n_head"], 0, TINY["n_embd"] // TINY["n_head"]), np.float32)
    names = [f"past_key_values.{layer}.{part}" for layer in range(TINY["n_layer"]) for part in ("key", "value")]
    ids = {"input_ids": np.array(rows), "attention_mask": np.array(mask), "position_ids": positions}
    return ids | dict.fromkeys(names, past)


def run(model: Model, rows: list[list[int]], mask: list[list[int]], keep: int | None = None) -> Floats:
    """With onnxruntime's own call, as other tools use the graph."""
    given = feeds(rows, mask) | ({} if keep is None else {"num_logits_to_keep": np.array([keep])})
    logits: Floats = model.session.run(["logits"], given)[0]
    return logits


@pytest.mark.parametrize(("keep", "n"), [(None, 20), (0, 20), (1, 1), (7, 7), (20, 20), (30, 20)])
def test_num_logits_to_keep(tiny_fp32: Model, tiny_int8: Model, keep: int | None, n: int) -> None:
    rows, mask = [some_ids(20), some_ids(20, seed=1)], [[1] * 20] * 2
    for model in (tiny_fp32, tiny_int8):
        every = run(model, rows, mask)
        assert every.shape == (2, 20, TINY["vocab_size"])
        assert difference(run(model, rows, mask, keep), every[:, -n:]) < 1e-5


@pytest.mark.parametrize("mask", [[0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]])
def test_padding_before_a_token_fails(tiny_fp32: Model, tiny_int8: Model, mask: list[int]) -> None:
    for model in (tiny_fp32, tiny_int8):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*attention_mask_must_be_padded_on_the_right"):
            run(model, [[1, 2, 3, 4]] * 2, [[1, 1, 1, 1], mask])


def test_positions_beyond_the_context_fail(tiny_fp32: Model, tiny_int8: Model) -> None:
    for model in (tiny_fp32, tiny_int8):
        with pytest.raises(Exception, match=r"INVALID_ARGUMENT.*positions"):
            run(model, [[1] * 97], [[1] * 97])


def padded(rows: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    width = max(map(len, rows))
    return [r + [0] * (width - len(r)) for r in rows], [[1] * len(r) + [0] * (width - len(r)) for r in rows]


RAGGED = [some_ids(n, seed=n) for n in (9, 30, 17)]


def test_right_padding_leaves_each_row_its_own_logits(tiny_pair: Pair) -> None:
    batch = run(tiny_pair[0], *padded(RAGGED))
    for row, logits in zip(RAGGED, batch, strict=True):
        assert difference(logits[: len(row)], torch_logits(tiny_pair[1], row)) < CLOSE


def test_right_padding_leaves_each_int8_row_the_same_bits(tiny_int8: Model) -> None:
    batch = run(tiny_int8, *padded(RAGGED))
    for row, logits in zip(RAGGED, batch, strict=True):
        assert (logits[: len(row)] == run(tiny_int8, *padded([row]))[0]).all()


def decode_together(model: Model, rows: list[list[int]], n: int) -> Floats:
    """Rows prefilled one by one, then decoded in one pass a token: [n_rows, n, n_vocab]."""
    cache = model.new_cache(max(map(len, rows)) + n, len(rows))
    logits = np.concatenate([cache.extend(row, row=i) for i, row in enumerate(rows)])
    all_logits = [logits]
    while len(all_logits) < n:
        all_logits.append(np.copy(cache.step(all_logits[-1].argmax(-1).tolist())))
    return np.stack(all_logits, axis=1)


def test_int8_rows_decoded_together_are_the_bits_of_each_alone(tiny_int8: Model) -> None:
    together = decode_together(tiny_int8, RAGGED, 60)
    for row, logits in zip(RAGGED, together, strict=True):
        assert (logits == decode_together(tiny_int8, [row], 60)[0]).all()


def test_demo_rows_decoded_together_are_the_bits_of_each_alone(demo_int8: Model, story: list[int]) -> None:
    rows = [story[:40], story[100:105], story[200:300], story[300:301]]
    together = decode_together(demo_int8, rows, 40)
    for row, logits in zip(rows, together, strict=True):
        assert (logits == decode_together(demo_int8, [row], 40)[0]).all()


def test_fp32_rows_decoded_together_are_transformers(tiny_pair: Pair) -> None:
    together = decode_together(tiny_pair[0], RAGGED, 20)
    for row, logits in zip(RAGGED, together, strict=True):
        ids = row + logits.argmax(-1).tolist()
        assert difference(logits, torch_logits(tiny_pair[1], ids[:-1])[len(row) - 1 :]) < CLOSE


def dimensions(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    return {name: [dim.dim_param or dim.dim_value for dim in shape] for name, shape in shapes.items()}


def test_interface_has_the_names_other_tools_know(tiny_int8: Model) -> None:
    graph = onnx.load(tiny_int8.folder / "model.onnx", load_external_data=False)
    names = [f"{layer}.{part}" for layer in range(3) for part in ("key", "value")]
    past, present = (["batch_size", 4, f"{kind}_sequence_length", 16] for kind in ("past", "total"))
    assert dimensions(list(graph.graph.input)) == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "num_logits_to_keep": [1],
        "num_hidden_to_keep": [1],
        **{f"past_key_values.{name}": past for name in names},
    }
    logits = ["batch_size", "kept_length", 300]
    hidden = ["batch_size", "hidden_length", 64]
    assert dimensions(list(graph.graph.output)) == {
        "logits": logits,
        **{f"present.{name}": present for name in names},
        "last_hidden_state": hidden,
    }


def test_metadata_says_format_and_kernel(tiny_fp32: Model, tiny_int8: Model) -> None:
    fp32, int8 = (model.session.get_modelmeta().custom_metadata_map for model in (tiny_fp32, tiny_int8))
    any_rows = {"gpt2_edge_needs_even_rows": "0"}
    assert fp32 == {"gpt2_edge_format": "3"} | any_rows
    assert int8 == fp32 | {"gpt2_edge_kernel": "block"}


def test_dense_products_are_of_integers(demo_int8: Model) -> None:
    graph = onnx.load(demo_int8.folder / "model.onnx", load_external_data=False).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["MatMulIntegerToFloat"] == 4 * 6 + 1
    assert counts["MatMul"] == counts["MatMulNBits"] == 0
    assert counts["Add"] == 3 * 6 + 13  # three biases a layer (the gelu adds the fourth), and the residuals


def test_int8_products_run_on_int8_kernels_and_wte_is_stored_once(demo_block_folder: Path) -> None:
    graph = onnx.load(demo_block_folder / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    levels = [a.i for node in products for a in node.attribute if a.name == "accuracy_level"]
    assert levels == [4] * (4 * 6 + 1)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}
    assert places["wte.q"] == places["wte.rows"] != {}
    assert {place["location"] for place in places.values() if place} == {"model.onnx_data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in places.values() if place)
