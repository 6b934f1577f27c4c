"""A corpus on a Dask cluster: complete, in order and the same as in one process, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import complete, load, score_text
from runtime.integrations import dask as corpus
from tests.conftest import DEMO

pytestmark = pytest.mark.filterwarnings("ignore")  # of another project
SIZE = 4


class Now:
    """A future that is done."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self) -> Any:
        return self._result() if callable(self._result) else self._result


class Here:
    """As much of a Dask client as is used, in this process: what was asked, and in what order it was done."""

    def __init__(self) -> None:
        self.submitted = 0
        self.cancelled = 0

    def submit(self, work: Callable[[list[str]], Any], texts: list[str], *, pure: bool) -> Now:
        assert not pure, "the same text may be sampled twice"
        self.submitted += 1
        return Now(lambda: work(texts))

    def nthreads(self) -> dict[str, int]:
        return {"here": 1}

    def cancel(self, futures: list[Now]) -> None:
        self.cancelled += len(futures)


def texts() -> list[str]:
    book = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    return [book[begin : begin + 300] for begin in range(0, 300 * 90, 300) if book[begin : begin + 300].strip()]


def test_scores_are_those_of_one_process(demo_int8_folder: Path) -> None:
    some = texts()[:9]
    found = list(corpus.score_texts(some, client=Here(), model=demo_int8_folder, partition_size=SIZE))
    with load(demo_int8_folder, threads=1) as model:
        assert found == score_text(some, model=model)


def test_completions_know_their_prompt(demo_int8_folder: Path) -> None:
    some = [text[:40] for text in texts()[:6]]
    options: dict[str, Any] = {"n": 2, "temperature": 0.9, "seed": 3, "max_new_tokens": 6}
    found = list(corpus.complete_texts(some, client=Here(), model=demo_int8_folder, partition_size=SIZE, **options))
    assert [(one.prompt_index, one.sample_index) for one in found] == [(i, n) for i in range(6) for n in range(2)]
    with load(demo_int8_folder, threads=1) as model:
        assert [one.ids for one in found] == [one.ids for one in complete(some, model=model, **options)]


def test_texts_are_read_as_they_are_needed(demo_int8_folder: Path) -> None:
    client, read = Here(), 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "Once upon a time"

    scores = corpus.score_texts(endless(), client=client, model=demo_int8_folder, partition_size=SIZE)
    next(scores)
    assert read == SIZE * client.submitted == SIZE * (corpus.AHEAD + 1)
    scores.close()
    assert client.cancelled == corpus.AHEAD


def test_an_error_says_where(demo_int8_folder: Path) -> None:
    some = ["Once upon a time"] * 5 + [""]
    with pytest.raises(ValueError, match="two are needed") as caught:
        list(corpus.score_texts(some, client=Here(), model=demo_int8_folder, partition_size=SIZE))
    assert caught.value.__notes__ == ["among texts 4 to 7, counted from 0"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": "one text"}, "a list or a generator"),
        ({"model": None}, "model is None"),
        ({"partition_size": 0}, "partition_size is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_what_is_wrong_is_said(demo_int8_folder: Path, changed: dict[str, Any], message: str) -> None:
    given = {"texts": ["a text"], "client": Here(), "model": demo_int8_folder} | changed
    with pytest.raises((TypeError, ValueError), match=message):
        list(corpus.score_texts(given.pop("texts"), **given))


def test_a_seed_is_one_for_all(demo_int8_folder: Path) -> None:
    with pytest.raises(TypeError, match="one number for all prompts"):
        list(corpus.complete_texts(["a"], client=Here(), model=demo_int8_folder, temperature=1.0, seed=[1]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A client of two processes on this machine."""
    if "CI" not in os.environ:
        pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as workers,
            Client(workers) as client,
        ):
            yield client


@pytest.mark.slow
def test_nothing_is_lost_with_a_worker(cluster: Any, demo_int8_folder: Path) -> None:
    all_texts = texts()
    cluster.wait_for_workers(2, timeout=60)
    before = set(cluster.run(os.getpid).values())
    assert len(before) == 2
    scores = corpus.score_texts(all_texts, client=cluster, model=demo_int8_folder, partition_size=SIZE)
    found = [next(scores)]
    killed = min(before)
    os.kill(killed, getattr(signal, "SIGKILL", signal.SIGTERM))  # where there is no SIGKILL, SIGTERM is as hard
    found += scores
    assert len(found) == len(all_texts) > 10 * SIZE
    cluster.wait_for_workers(2, timeout=60)
    assert killed not in set(cluster.run(os.getpid).values())
    with load(demo_int8_folder, threads=1) as model:
        assert found == score_text(all_texts, model=model)


@pytest.mark.slow
def test_a_cluster_completes_as_one_process_does(cluster: Any, demo_int8_folder: Path) -> None:
    prompts = [text[:50] for text in texts()[:20]]
    options: dict[str, Any] = {"temperature": 0.8, "seed": 11, "max_new_tokens": 12}
    found = list(corpus.complete_texts(prompts, client=cluster, model=demo_int8_folder, partition_size=SIZE, **options))
    with load(demo_int8_folder, threads=1) as model:
        ours = complete(prompts, model=model, **options)
    assert [(one.prompt_index, one.ids) for one in found] == [(one.prompt_index, one.ids) for one in ours]
