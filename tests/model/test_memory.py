"""What a model and its batches will need of memory: said before they take it, and held to."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

import runtime
from runtime import estimate, generate, load
from runtime.model.model import Model
from tests.trials import memory


def test_the_cache_is_what_numpy_says(demo_int8: Model, demo_int8_folder: Path) -> None:
    cache = demo_int8.new_cache(100, 3)
    assert estimate(demo_int8_folder, context=100, rows=3).cache == cache._buffers.nbytes


def test_the_total_grows_with_context_and_rows(demo_int8_folder: Path) -> None:
    totals = [estimate(demo_int8_folder, context=n, rows=8).total for n in (64, 256, 512)]
    assert totals == sorted(set(totals))
    rows = [estimate(demo_int8_folder, rows=n).total for n in (1, 2, 16)]
    assert rows == sorted(set(rows))
    assert estimate(demo_int8_folder) == estimate(demo_int8_folder, context=512, rows=1)


def test_a_folder_is_estimated_without_being_opened(demo_int8_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.onnx", "model.onnx_data", "model_int8_cache.onnx"):
        (tmp_path / name).write_bytes(b"\0" * (demo_int8_folder / name).stat().st_size)
    (tmp_path / "config.json").write_bytes((demo_int8_folder / "config.json").read_bytes())
    assert estimate(str(tmp_path)) == estimate(demo_int8_folder)


def test_what_cannot_be_estimated(demo_int8_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        estimate(tmp_path)
    (tmp_path / "config.json").write_bytes((demo_int8_folder / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no model\.onnx"):
        estimate(tmp_path)
    with pytest.raises(ValueError, match="context is 513; the model has 512 positions"):
        estimate(demo_int8_folder, context=513)
    for wrong in ({"context": 0}, {"rows": 0}, {"rows": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            estimate(demo_int8_folder, **wrong)
    with pytest.raises(TypeError):
        estimate(demo_int8_folder, rows=1.5)  # type: ignore[arg-type]


def test_a_model_that_is_too_large_is_refused_with_the_numbers(demo_int8_folder: Path) -> None:
    with pytest.raises(MemoryError, match=r"loading .* takes about [\d,]+ bytes, max_memory is 50,000,000"):
        load(demo_int8_folder, max_memory=50_000_000)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_memory"):
            load(demo_int8_folder, max_memory=wrong)


def test_a_batch_that_is_too_large_is_refused_and_a_smaller_one_is_not(demo_int8_folder: Path) -> None:
    limit = estimate(demo_int8_folder, context=100, rows=2).total
    with load(demo_int8_folder, max_memory=limit) as model:
        with pytest.raises(MemoryError, match=r"a batch of 16 x \d+ positions takes about [\d,]+ bytes and"):
            runtime.complete(["Once"] * 16, model=model, max_new_tokens=90)
        with pytest.raises(MemoryError, match=r"a batch of 1 x 50\d positions"):
            generate("Once", model=model, max_new_tokens=500)
        assert generate("Once", model=model, max_new_tokens=50)


def test_open_batches_count_together_until_they_are_freed(demo_int8_folder: Path) -> None:
    limit = estimate(demo_int8_folder, context=256, rows=1).total
    with load(demo_int8_folder, max_memory=limit) as model:
        cache = model.new_cache(256)
        with pytest.raises(MemoryError):
            model.new_cache(256)
        del cache
        gc.collect()
        model.new_cache(256)
        begun = runtime.stream("Once", model=model, max_new_tokens=250)
        next(begun)
        with pytest.raises(MemoryError):
            generate("Once", model=model, max_new_tokens=250)
        begun.close()
        del begun
        gc.collect()
        assert generate("Once", model=model, max_new_tokens=250)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of resident memory as it goes")
@pytest.mark.parametrize(("rows", "context"), [(1, 64), (8, 512)])
@pytest.mark.parametrize("name", ["demo_int8_folder", "demo_fp32_folder"])
def test_estimates_are_within_the_bound(name: str, rows: int, context: int, request: pytest.FixtureRequest) -> None:
    (trial,) = memory.trials([request.getfixturevalue(name)], [rows], [context])
    assert abs(trial["error"]) <= 100 * memory.ALLOWED, trial
