"""Check that this device runs a model like the machine that built it.

The files are verified against their checksums, and the outputs recorded in golden.json are scored again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime._json import shown
from runtime._math import log_softmax
from runtime.graph.head import TOKEN, Head
from runtime.model.integrity import CHECKSUMS, GOLDEN, find_damaged, read_checksums
from runtime.model.model import Model
from runtime.model.prefill import prefill

# The most records of each kind in golden.json; a build writes four.
MAX_RECORDS = 1_000
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of a check.

    damaged: files that are missing or differ from their checksum.
    n_tokens: recorded ids that were scored.
    n_unlikely: how many of these ids are not the likeliest, although their recorded margin exceeds the tolerance.
    largest_difference: the largest difference of a log-probability from the recorded one.
    n_exact: how many log-probabilities equal the recorded ones to the last bit.
    is_of_labels: the model is a classifier: in place of ids and log-probabilities, texts (or tokens) that are labelled,
        and scores of labels.

    A folder of OpenAI's gpt2 also holds outputs of that model that others have published. They are for information,
    since int8 may differ from them:

    n_openai: how many ids were published.
    n_openai_likeliest: how many of these ids are the likeliest here.
    openai_difference: the mean difference from the published log-probabilities, for each token.
    """

    damaged: list[str]
    n_tokens: int
    n_unlikely: int
    largest_difference: float
    tolerance: float
    n_exact: int
    is_of_labels: bool = False
    n_openai: int = 0
    n_openai_likeliest: int = 0
    openai_difference: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the files are undamaged, and the model computes what was recorded when it was built."""
        return not self.damaged and not self.n_unlikely and self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        if self.damaged:
            return f"NOT OK: {', '.join(self.damaged)} missing or damaged; copy the model folder again"
        exact = "exactly" if self.n_exact == self.n_tokens else f"{self.n_exact} of them exactly"
        counted = "recorded texts or tokens labelled" if self.is_of_labels else "recorded tokens scored"
        numbers = "scores" if self.is_of_labels else "log-probabilities"
        figures = (
            f"{self.n_tokens} {counted}, {exact}; {numbers} differ by at most "
            f"{self.largest_difference:.4f}, {self.tolerance} is allowed"
        )
        if self.n_openai:
            figures += (
                f"; {self.n_openai_likeliest} of {self.n_openai} tokens that OpenAI's gpt2 is recorded to write are "
                f"the likeliest here, and the log-probabilities recorded of it differ by {self.openai_difference:.4f} "
                "a token"
            )
        if self.passed:
            return f"ok: this device runs the model as it should ({figures})"
        return f"NOT OK: this device computes something else ({figures}; {self.n_unlikely} unlikely)"


@dataclasses.dataclass(frozen=True)
class _Record:
    """A recorded continuation of a prompt.

    logprobs, margins: for each id its log-probability, and how much larger that is than the second largest; empty if
    they are not recorded. logprob: the sum over all ids, if it is recorded.
    """

    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    margins: list[float]
    logprob: float


@dataclasses.dataclass(frozen=True)
class _Golden:
    """The content of golden.json."""

    tolerance: float
    records: list[_Record]
    openai: list[_Record]
    openai_scored: list[_Record]


def check_folder(folder: Path, threads: int | None = None) -> Check:
    """Load a model folder with `verify="full"`, then score its recorded outputs by teacher forcing.

    A recorded id must be the likeliest, unless its margin over the second likeliest was below the tolerance, and its
    log-probability must be within the tolerance, which is stored with the records. A folder of OpenAI's gpt2 also holds
    published outputs of that model; disagreement with them does not fail the check.

    Raises FileNotFoundError for a folder without checksums or golden.json; ValueError for a damaged golden.json, and
    for a folder that `runtime.load` does not open for another reason than missing or damaged files.

        print(check_folder(Path("models/demo-int8")))
    """
    if read_checksums(folder) is None:
        raise FileNotFoundError(
            f"{folder / CHECKSUMS} is missing: {folder} is not a model folder that export/build.py made"
        )
    try:
        model = Model(folder, threads=threads, verify="full")
    except (ValueError, FileNotFoundError):
        if damaged := find_damaged(folder):
            return Check(damaged, 0, 0, 0.0, 0.0, 0)
        raise
    with model:
        return _check_model(model) if model.config.head is None else _check_classifier(model)


def _check_model(model: Model) -> Check:
    golden = _read_golden(model)
    scored = [_score(model, record, golden.tolerance) for record in golden.records]
    openai = [_agreement(model, record) for record in golden.openai]
    openai_differences = [_difference(model, record) for record in golden.openai_scored]
    differences = np.concatenate([differences for differences, _ in scored])
    return Check(
        damaged=[],
        n_tokens=len(differences),
        n_unlikely=sum(unlikely for _, unlikely in scored),
        largest_difference=float(differences.max()),
        tolerance=golden.tolerance,
        n_exact=int((differences == 0).sum()),
        n_openai=sum(n for n, _ in openai),
        n_openai_likeliest=sum(likeliest for _, likeliest in openai),
        openai_difference=float(np.mean(openai_differences)) if openai_differences else 0.0,
    )


def _check_classifier(model: Model) -> Check:
    """Label the recorded ids again. A label counts as unlikely if it was ahead by more than twice the tolerance."""
    head = model.check_classifier()
    tolerance, records = _read_label_golden(model, head)
    found = np.concatenate([_label(model, head, ids) for ids, _ in records])
    expected = np.concatenate([scores for _, scores in records])
    differences = np.abs(found - expected).max(-1)
    ordered = np.sort(expected, -1)
    sure = ordered[:, -1] - ordered[:, -2] > 2 * tolerance if len(head.labels) > 1 else np.zeros(len(expected), bool)
    return Check(
        damaged=[],
        n_tokens=len(differences),
        n_unlikely=int(((found.argmax(-1) != expected.argmax(-1)) & sure).sum()),
        largest_difference=float((differences / np.maximum(1, np.abs(expected).max(-1))).max()),
        tolerance=tolerance,
        n_exact=int((differences == 0).sum()),
        is_of_labels=True,
    )


# golden.json ----------------------------------------------------------------------------------------------------------


def _read_golden(model: Model) -> _Golden:
    """Read golden.json and check all its numbers. Raises FileNotFoundError or ValueError, naming the file."""
    path = model.folder / GOLDEN
    raw = model.read_json(GOLDEN)
    if raw is None:
        raise FileNotFoundError(f"{path} is missing; a model folder has one: copy the model folder again")
    try:
        return _Golden(
            _number("tolerance", raw.get("tolerance"), least=0),
            _records(raw, "records", lambda name, value: _read_record(model, name, value, each=True)),
            _records(raw, "openai", lambda name, value: _read_record(model, name, value)) if "openai" in raw else [],
            _records(raw, "openai_scored", lambda name, value: _read_record(model, name, value, total=True))
            if "openai_scored" in raw
            else [],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_label_golden(model: Model, head: Head) -> tuple[float, list[tuple[list[int], NDArray[np.float32]]]]:
    """The tolerance of a classifier's golden.json, and its records: ids with scores [n_labelled, n_labels].

    Raises FileNotFoundError or ValueError, naming the file.
    """
    path = model.folder / GOLDEN
    raw = model.read_json(GOLDEN)
    if raw is None:
        raise FileNotFoundError(f"{path} is missing; a model folder has one: copy the model folder again")
    try:
        tolerance = _number("tolerance", raw.get("tolerance"), least=0)
        return tolerance, _records(raw, "records", lambda name, value: _read_labelled(model, head, name, value))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_labelled(model: Model, head: Head, name: str, raw: Any) -> tuple[list[int], NDArray[np.float32]]:
    if not isinstance(raw, dict):
        raise ValueError(f"{name} is {shown(raw)}; an object is expected")
    ids = _ids(f"{name}.ids", raw.get("ids"), model)
    given = raw.get("scores")
    rows = _several(f"{name}.scores", given, len(ids)) if head.kind == TOKEN else [given]
    if head.kind == TOKEN and len(rows) != len(ids):
        raise ValueError(f"{name}.scores has {len(rows)} rows for {len(ids)} ids")
    return ids, np.array([_numbers(f"{name}.scores", row, len(head.labels)) for row in rows], np.float32)


def _records(raw: dict[str, Any], name: str, read: Callable[[str, Any], T]) -> list[T]:
    return [read(f"{name}[{index}]", value) for index, value in enumerate(_several(name, raw.get(name), MAX_RECORDS))]


def _read_record(model: Model, name: str, raw: Any, *, each: bool = False, total: bool = False) -> _Record:
    """Read one record. each: with log-probability and margin of each id. total: with the summed log-probability."""
    if not isinstance(raw, dict):
        raise ValueError(f"{name} is {shown(raw)}; an object is expected")
    n_most = model.config.n_positions
    prompt_ids = _ids(f"{name}.prompt_ids", raw.get("prompt_ids"), model)
    ids = _ids(f"{name}.ids", raw.get("ids"), model)
    if len(prompt_ids) + len(ids) > n_most:
        raise ValueError(f"{name} has {len(prompt_ids)} and {len(ids)} ids; the model has {n_most} positions")
    return _Record(
        prompt_ids,
        ids,
        _numbers(f"{name}.logprobs", raw.get("logprobs"), len(ids)) if each else [],
        _numbers(f"{name}.margins", raw.get("margins"), len(ids)) if each else [],
        _number(f"{name}.logprob", raw.get("logprob")) if total else 0.0,
    )


def _several(name: str, value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ValueError(f"{name} is {shown(value)}; a list of 1 to {most} is expected")
    return value


def _ids(name: str, value: Any, model: Model) -> list[int]:
    vocab_size = model.config.vocab_size
    ids = _several(name, value, model.config.n_positions)
    if wrong := [id_ for id_ in ids if type(id_) is not int or not 0 <= id_ < vocab_size]:
        raise ValueError(f"{name} has {shown(wrong[0])}; token ids from 0 to {vocab_size - 1} are expected")
    return ids


def _numbers(name: str, value: Any, n: int) -> list[float]:
    numbers = _several(name, value, n)
    if len(numbers) != n:
        raise ValueError(f"{name} has {len(numbers)} numbers; {n} are expected")
    return [_number(name, number) for number in numbers]


def _number(name: str, value: Any, least: float = -math.inf) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < least:
        raise ValueError(
            f"{name} is {shown(value)}; a finite number{' of at least 0' if least == 0 else ''} is expected"
        )
    return number


# scores ---------------------------------------------------------------------------------------------------------------


def _score(model: Model, record: _Record, tolerance: float) -> tuple[NDArray[np.float32], int]:
    """The difference of each id's log-probability from the recorded one, and the number of unlikely ids."""
    logprobs = forced_logprobs(model, record.prompt_ids, record.ids)
    ids = np.array(record.ids)
    differences = np.abs(logprobs[np.arange(len(ids)), ids] - np.array(record.logprobs, np.float32))
    sure = np.array(record.margins) >= tolerance
    return differences, int(((logprobs.argmax(-1) != ids) & sure).sum())


def _label(model: Model, head: Head, ids: list[int]) -> NDArray[np.float32]:
    """The scores of one text: [1, n_labels], of a classifier of tokens [n_tokens, n_labels]."""
    row = np.array([ids], np.int64)
    logits = model.run_classifier(row, np.ones_like(row))
    return head.scores_of(logits[0] if head.kind == TOKEN else logits)


def _agreement(model: Model, record: _Record) -> tuple[int, int]:
    """The number of ids of a record, and how many of them are the likeliest by teacher forcing."""
    logprobs = forced_logprobs(model, record.prompt_ids, record.ids)
    return len(record.ids), int((logprobs.argmax(-1) == np.array(record.ids)).sum())


def _difference(model: Model, record: _Record) -> float:
    """The difference of a record's summed log-probability from the recorded one, divided by the number of its ids."""
    logprobs = forced_logprobs(model, record.prompt_ids, record.ids)
    n = len(record.ids)
    return abs(float(logprobs[np.arange(n), record.ids].sum()) - record.logprob) / n


def forced_logprobs(model: Model, prompt_ids: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
    """Log-probabilities [len(ids), n_vocab] before each id, given the prompt and the ids before it.

    Computed token by token after the prompt, like generation.
    """
    cache = model.new_cache(len(prompt_ids) + len(ids))
    logits = prefill(cache, prompt_ids)
    rows = [log_softmax(logits)]
    rows += [log_softmax(cache.step([id_])[0]) for id_ in ids[:-1]]
    return np.array(rows)
