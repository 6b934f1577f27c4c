"""Long use, and use by many threads at once: nothing is left over, and nobody disturbs anybody."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime.model.model import Model
from tests.trials import endurance

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")
N_THREADS = 16
PROMPTS = [" ".join(endurance.WORDS[: 1 + index % 14]) for index in range(48)]


def options(index: int) -> dict[str, Any]:
    sampled = {"temperature": index % 3 / 2, "seed": index} if index % 3 else {}
    return {"max_new_tokens": 4 + index % 12, **sampled}


def write(model: Model, index: int) -> list[int]:
    (completion,) = runtime.complete(PROMPTS[index], model=model, **options(index))
    return completion.ids


@pytest.fixture(scope="module")
def alone(demo_int8: Model) -> list[list[int]]:
    """The ids of each prompt, one after the other."""
    return [write(demo_int8, index) for index in range(len(PROMPTS))]


def test_sixteen_threads_write_what_one_writes(demo_int8: Model, alone: list[list[int]]) -> None:
    with ThreadPoolExecutor(N_THREADS) as pool:
        assert list(pool.map(lambda index: write(demo_int8, index), range(len(PROMPTS)))) == alone


def test_failing_and_cancelled_generations_disturb_no_other(demo_int8: Model, alone: list[list[int]]) -> None:
    def cancel() -> None:
        cancelled = threading.Event()
        stream = runtime.stream("Once upon a time", model=demo_int8, max_new_tokens=200, cancel=cancelled.is_set)
        next(stream)
        cancelled.set()
        assert len(list(stream)) < 200

    def abandon() -> None:
        stream = runtime.stream("Once upon a time", model=demo_int8, max_new_tokens=200)
        next(stream)
        stream.close()

    def fail() -> None:
        with pytest.raises(ValueError, match="512"):
            runtime.generate("Once", model=demo_int8, max_new_tokens=10_000)

    others: list[Callable[[], None]] = [cancel, abandon, fail]
    with ThreadPoolExecutor(N_THREADS) as pool:
        found = [pool.submit(write, demo_int8, index) for index in range(len(PROMPTS))]
        disturbing = [pool.submit(others[index % 3]) for index in range(len(PROMPTS))]
        assert [future.result() for future in found] == alone
        for future in disturbing:
            future.result()


def test_close_lets_generations_end(demo_int8_folder: Path, alone: list[list[int]]) -> None:
    model = Model(demo_int8_folder)
    stream = runtime.stream(PROMPTS[6], model=model, **options(6))
    first = next(stream)
    model.close()
    with Model(demo_int8_folder) as other:
        assert first + "".join(stream) == runtime.generate(PROMPTS[6], model=other, **options(6))
    with pytest.raises(ValueError, match="closed"):
        runtime.generate("Once", model=model)


@pytest.mark.slow
@linux_only
def test_generations_leave_nothing(demo_int8_folder: Path) -> None:
    figures = endurance.endure_generations(demo_int8_folder, 400)
    assert (figures["threads"], figures["files"]) == (0, 0)
    assert figures["slope"] < 5_000  # bytes each; the full trial is finer


@pytest.mark.slow
@linux_only
def test_loads_leave_nothing(demo_int8_folder: Path) -> None:
    figures = endurance.endure_loads(demo_int8_folder, 24)
    assert (figures["threads"], figures["files"]) == (0, 0)
    assert figures["slope"] < 500_000  # of the eight million bytes that each one holds
