"""Does this device run the model as it should? Checksums, and the model's own recorded outputs scored again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime._json import read_json
from runtime._math import log_softmax
from runtime.model.integrity import CHECKSUMS, differing, read_checksums
from runtime.model.model import Model
from runtime.model.prefill import prefill

GOLDEN = "golden.json"


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found."""

    damaged: list[str]  # files that are missing or differ from their checksum
    n_tokens: int  # recorded ids scored
    n_unlikely: int  # of them, how many are not the likeliest although the record was sure
    largest_difference: float  # of a log-probability from the recorded one
    tolerance: float
    n_exact: int  # ids whose log-probability is the recorded one to the last bit
    n_openai: int = 0  # ids that OpenAI's gpt2 is recorded to write elsewhere; only a folder of its weights has them
    n_openai_likeliest: int = 0  # of them, how many this model finds likeliest; information, since int8 may differ
    openai_difference: float = 0.0  # a token, of the log-probabilities recorded of it; information, too

    @property
    def passed(self) -> bool:
        """Whether the files are whole and the model computes what it did where it was built."""
        return not self.damaged and not self.n_unlikely and self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        if self.damaged:
            return f"NOT OK: {', '.join(self.damaged)} missing or damaged; copy the model folder again"
        exact = "exactly" if self.n_exact == self.n_tokens else f"{self.n_exact} of them exactly"
        figures = (
            f"{self.n_tokens} recorded tokens scored, {exact}; log-probabilities differ by at most "
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


def check_folder(folder: Path, threads: int | None = None) -> Check:
    """Verify the checksums of a model folder, then score its recorded outputs by teacher forcing.

    A recorded id must be the likeliest, unless its margin over the second was below the tolerance, and its
    log-probability within the tolerance, which is stored with the record. A folder of OpenAI's gpt2 holds what that
    model is recorded to write elsewhere, too: agreement is counted, and fails nothing. Raises FileNotFoundError for a
    folder without checksums or record, ValueError for a model that cannot be opened.
    """
    checksums = read_checksums(folder)
    if checksums is None:
        raise FileNotFoundError(
            f"{folder / CHECKSUMS} is missing: {folder} is not a model folder that export/build.py made"
        )
    if damaged := differing(folder, checksums):
        return Check(damaged, 0, 0, 0.0, 0.0, 0)
    golden = read_json(folder / GOLDEN)
    tolerance = float(golden["tolerance"])
    with Model(folder, threads=threads, verify="off") as model:  # verified above
        scored = [_score(model, record, tolerance) for record in golden["records"]]
        openai = [_agreement(model, record) for record in golden.get("openai", [])]
        openai_differences = [_difference(model, record) for record in golden.get("openai_scored", [])]
    differences = np.concatenate([differences for differences, _ in scored])
    return Check(
        damaged=[],
        n_tokens=len(differences),
        n_unlikely=sum(unlikely for _, unlikely in scored),
        largest_difference=float(differences.max()),
        tolerance=tolerance,
        n_exact=int((differences == 0).sum()),
        n_openai=sum(n for n, _ in openai),
        n_openai_likeliest=sum(likeliest for _, likeliest in openai),
        openai_difference=float(np.mean(openai_differences)) if openai_differences else 0.0,
    )


def _score(model: Model, record: dict[str, Any], tolerance: float) -> tuple[NDArray[np.float32], int]:
    """How far each recorded id's log-probability is off, and how many ids are wrongly not the likeliest."""
    logprobs = forced_logprobs(model, record["prompt_ids"], record["ids"])
    at = np.arange(len(record["ids"])), np.array(record["ids"])
    differences = np.abs(logprobs[at] - np.array(record["logprobs"], np.float32))
    sure = np.array(record["margins"]) >= tolerance
    return differences, int(((logprobs.argmax(-1) != at[1]) & sure).sum())


def _agreement(model: Model, record: dict[str, Any]) -> tuple[int, int]:
    """How many ids a record has, and how many of them are the likeliest by teacher forcing."""
    logprobs = forced_logprobs(model, record["prompt_ids"], record["ids"])
    return len(record["ids"]), int((logprobs.argmax(-1) == np.array(record["ids"])).sum())


def _difference(model: Model, record: dict[str, Any]) -> float:
    """How far the summed log-probability of a record's ids is off, a token."""
    logprobs = forced_logprobs(model, record["prompt_ids"], record["ids"])
    n = len(record["ids"])
    return abs(float(logprobs[np.arange(n), record["ids"]].sum()) - float(record["logprob"])) / n


def forced_logprobs(model: Model, prompt_ids: list[int], ids: list[int]) -> NDArray[np.float32]:
    """Log-probabilities [len(ids), n_vocab] before each id, given the prompt and the ids before it.

    Token by token after the prompt, as generation computes them.
    """
    cache = model.new_cache(len(prompt_ids) + len(ids))
    logits = prefill(cache, prompt_ids)
    rows = [log_softmax(logits)]
    rows += [log_softmax(cache.step([id_])[0]) for id_ in ids[:-1]]
    return np.array(rows)
