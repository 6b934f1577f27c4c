"""The logits of a row, bit for bit, beside any number of other rows: every precision, block size and several widths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import build as build_command
from export.checkpoint.config import Config
from export.graph.graph import build
from export.quantize.dense import DenseInt8, StaticInt8
from export.quantize.int4 import Int4
from export.quantize.precision import BLOCK_SIZES, INT4_BLOCK_SIZES, Float32, Floats, Int8, Precision
from runtime import complete
from runtime.model.config import Config as RuntimeConfig
from runtime.model.kv_cache import InPlaceCache
from runtime.model.model import Model
from runtime.model.session import Session
from tests.support.building import QUICK, write_tiny

MOST = 64  # rows together
CAPACITY = 48
N_VOCAB = 263  # no multiple of what a kernel takes at a time
WIDTHS = (64, 256, 768)
EVERY: dict[str, Precision] = {
    "fp32": Float32(),
    "int8-dense": DenseInt8(),
    "int8-static": StaticInt8({"h.0.attn.c_attn": (-4, 4), "h.0.attn.c_proj": (-1, 2), "h.0.mlp.c_fc": (-4, 3)}),
    **{f"int8-{size}": Int8(size) for size in BLOCK_SIZES},
    **{f"int4-{size}": Int4(size) for size in INT4_BLOCK_SIZES},
}
Case = tuple[Precision, int]


def cases() -> Iterator[Case]:
    """Every precision with the widths that its blocks divide."""
    for name, precision in EVERY.items():
        for width in WIDTHS:
            if width % getattr(precision, "block_size", 1) == 0:
                yield pytest.param((precision, width), id=f"{name}-{width}")  # type: ignore[misc]


class Noise:
    """Weights of any shape that the graph asks for."""

    def __init__(self, width: int) -> None:
        self._width, self._draw = width, np.random.default_rng(width)

    embedding_factor = None
    hidden_factor = None

    def __getitem__(self, name: str) -> Floats:
        width, last = self._width, name.split(".")[-2]
        shapes = {"wte": (N_VOCAB, width), "wpe": (CAPACITY, width), "c_attn": (width, 3 * width)}
        shapes |= {"c_fc": (width, 4 * width), "c_proj": (4 * width if "mlp" in name else width, width)}
        shape = shapes.get(last, (width,))
        made = self._draw.standard_normal(shape if name.endswith("weight") else shape[-1:]) / 6
        return made.astype(np.float32)


@pytest.fixture(params=cases())
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> InPlaceCache:
    """Of MOST rows, each with a prompt of its own."""
    precision, width = request.param
    sizes = {"n_positions": CAPACITY, "n_embd": width, "n_layer": 1, "n_head": 4}
    config = Config(vocab_size=N_VOCAB, bos_token_id=None, eos_token_id=None, **sizes)
    build(config, Noise(width), precision, tmp_path)
    session = Session(tmp_path / "model.onnx", 2, True)
    known = RuntimeConfig(vocab_size=N_VOCAB, bos_token_id=None, eos_token_ids=frozenset(), **sizes)
    return InPlaceCache(session, known, CAPACITY, MOST, needs_even_rows=precision.needs_even_rows)


def test_a_row_has_the_same_logits_beside_any_number_of_others(cache: InPlaceCache) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, CAPACITY - 1, MOST).tolist()
    for row, length in enumerate(lengths):
        cache.extend(draw.integers(N_VOCAB, size=length).tolist(), row=row)
    ids = draw.integers(N_VOCAB, size=MOST).tolist()
    alone: list[Floats] = []
    kept = cache.read_row(0, lengths[0])
    for row, id_ in enumerate(ids):  # a pass over the first row alone, which holds what each row holds
        cache.write_row(0, cache.read_row(row, lengths[row]) if row else kept)
        alone.append(cache.step([id_])[0].copy())
    cache.write_row(0, kept)
    for n in range(1, MOST + 1):
        together = cache.step(ids[:n])
        differ = [row for row in range(n) if not np.array_equal(together[row], alone[row])]
        assert not differ, f"beside {n - 1} others, rows {differ} have other logits"
        for row in range(n):
            cache.truncate(row, lengths[row])


@pytest.fixture(scope="module")
def int4_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("int4")
    arguments = ["--precision", "int4", "--block-size", "64", "--no-calibration", *QUICK]
    build_command.main([str(write_tiny(place / "tiny")), *arguments, "--output", str(place / "model")])
    return place / "model"


def test_texts_of_a_folder_are_the_same_alone_and_in_a_batch(int4_64: Path) -> None:
    prompts = ["A tiny model", "needs", "a tiny text, and"]
    with Model(int4_64) as model:
        assert model.needs_even_rows
        together = complete(prompts, model=model, max_new_tokens=60, temperature=1.0, seed=3)
        for prompt, one in zip(prompts, together, strict=True):
            (alone,) = complete(prompt, model=model, max_new_tokens=60, temperature=1.0, seed=3)
            assert (alone.ids, alone.logprobs) == (one.ids, one.logprobs)


def test_a_folder_of_before_the_key_is_taken_to_need_even_rows(int4_64: Path) -> None:
    graph = onnx.load(int4_64 / "model.onnx", load_external_data=False)
    (said,) = (entry for entry in graph.metadata_props if entry.key == "gpt2_edge_needs_even_rows")
    graph.metadata_props.remove(said)
    onnx.save(graph, int4_64 / "model.onnx")
    with Model(int4_64, verify="off") as model:
        assert model.needs_even_rows
