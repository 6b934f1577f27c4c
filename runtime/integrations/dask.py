"""Score or complete large numbers of texts on a Dask cluster, in partitions, with the results in order.

Every worker needs gpt2-edge and the model folder, at the same path. A worker loads the model once and keeps it. When a
worker is lost, Dask runs its partitions again on another one; after several losses of the same partition it raises its
`KilledWorker`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from runtime import Completion, Model, Score, complete, load, score_text
from runtime._checks import check_count, shown
from runtime._lock import Lock
from runtime.model.resolve import check_path

Result = TypeVar("Result")
# How many texts a worker takes at a time; when the worker is lost, these are processed again.
PARTITION_SIZE = 64
# How many partitions each thread of the cluster is given: one runs while the next waits.
AHEAD = 2
_opening = Lock()


class Client(Protocol):
    """The part of `dask.distributed.Client` that is used here."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, pure: bool) -> Any:
        """Run work on a worker; returns its future."""

    def nthreads(self) -> Mapping[str, int]:
        """The number of threads of each worker, by its address."""

    def cancel(self, futures: list[Any]) -> object:
        """Cancel the work of these futures that has not begun."""


def score_texts(
    texts: Iterable[str],
    *,
    client: Client,
    model: str | os.PathLike[str],
    stride: int | None = None,
    threads: int = 1,
    partition_size: int = PARTITION_SIZE,
) -> Iterator[Score]:
    """The score of each text by `runtime.score_text`, in order, each as soon as it is there.

    texts: read as needed, so that it may be a generator over any number of files.
    client: a `dask.distributed.Client` of a cluster whose workers are processes of one thread each.
    model: the path of the model folder, on every machine.
    threads: how many threads each worker computes with.
    Raises the errors of `runtime.score_text`, with a note that names the texts.
    """
    work = functools.partial(_score, _path(model), check_count("threads", threads), stride)
    for _, scores in _in_order(client, work, texts, partition_size):
        yield from scores


def complete_texts(
    prompts: Iterable[str],
    *,
    client: Client,
    model: str | os.PathLike[str],
    threads: int = 1,
    partition_size: int = PARTITION_SIZE,
    **options: Any,
) -> Iterator[Completion]:
    """The completions of each prompt by `runtime.complete`, `n` for each, in order, each as soon as it is there.

    Takes the arguments of `score_texts` and the options of `runtime.complete`; `seed` is one number for all prompts.
    Raises the errors of `runtime.complete`, with a note that names the prompts.
    """
    if not isinstance(options.get("seed"), int | None):
        raise TypeError(f"seed is {options['seed']!r}; here it is one number for all prompts")
    work = functools.partial(_complete, _path(model), check_count("threads", threads), options)
    for begin, completions in _in_order(client, work, prompts, partition_size):
        for one in completions:
            yield dataclasses.replace(one, prompt_index=begin + one.prompt_index)


def _in_order(
    client: Client, work: Callable[[list[str]], list[Result]], texts: Iterable[str], size: int
) -> Iterator[tuple[int, list[Result]]]:
    """The index of the first text, and the results, of each partition in order; a few run at the same time."""
    waiting: deque[tuple[int, Any]] = deque()
    try:
        for begin, partition in _partitions(texts, check_count("partition_size", size)):
            waiting.append((begin, client.submit(work, partition, pure=False)))
            while len(waiting) > AHEAD * max(1, sum(client.nthreads().values())):
                yield _result(*waiting.popleft(), size)
        while waiting:
            yield _result(*waiting.popleft(), size)
    finally:
        client.cancel([future for _, future in waiting])


def _partitions(texts: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"texts is {shown(texts)}; several texts are expected, in a list or a generator")
    left = iter(texts)
    for begin in itertools.count(step=size):
        partition = list(itertools.islice(left, size))
        if not partition:
            return
        yield begin, partition


def _result(begin: int, future: Any, size: int) -> tuple[int, Any]:
    try:
        return begin, future.result()
    except Exception as error:
        error.add_note(f"among texts {begin} to {begin + size - 1}, counted from 0")
        raise


def _path(model: object) -> str:
    return str(check_path(model).resolve())


def _score(model: str, threads: int, stride: int | None, texts: list[str]) -> list[Score]:
    scores: list[Score] = score_text(texts, model=_open(model, threads), stride=stride)
    return scores


def _complete(model: str, threads: int, options: dict[str, Any], prompts: list[str]) -> list[Completion]:
    return complete(prompts, model=_open(model, threads), **options)


def _open(model: str, threads: int) -> Model:
    """The Model of this worker, which all of its threads share."""
    with _opening:
        return _load_once(model, threads)


@functools.lru_cache(maxsize=1)
def _load_once(model: str, threads: int) -> Model:
    return load(model, threads=threads)
