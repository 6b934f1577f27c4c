"""Quality of a new model against its reference, both run by the runtime that ships."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export import own_writing
from runtime.model import Model
from runtime.scoring import log_probabilities
from runtime.text import encode

MAX_LOSS = {"fp32": 0.01, "int8": 0.5, "int4": 4.0}  # per cent of perplexity
PROTOCOL = "windows and stride of n_positions, nothing prepended, every token predicted once but the first"


@dataclasses.dataclass(frozen=True)
class Quality:
    """What verification measured: `quality.json` under the same names."""

    reference: str
    text: str
    text_sha256: str  # of the ids, with commas between, where the model wrote it
    protocol: str
    n_tokens: int
    reference_perplexity: float
    perplexity: float
    loss_percent: float  # of perplexity, relative
    top1_agreement: float  # share of positions where both find the same token likeliest
    mean_kl: float  # D(reference || model), natural logarithm, mean over positions
    p99_kl: float  # 99 of 100 positions diverge less

    def check(self, max_loss: float, cure: str) -> None:
        """Raise ValueError if the loss passes `max_loss` per cent, or is no number; `cure`: what loses less."""
        if not math.isfinite(self.loss_percent):
            raise ValueError(
                f"the model's perplexity is {self.perplexity}, the reference's {self.reference_perplexity}: not "
                "published. Its weights are damaged, or too large for fp32 arithmetic"
            )
        if self.loss_percent > max_loss:
            raise ValueError(
                f"the model loses {self.loss_percent:.3f} % of perplexity, more than {max_loss} %: not published; "
                f"{cure}, --max-loss PERCENT allows more"
            )


def read_text(text: Path, encode: Callable[[str], list[int]], at_least: int) -> tuple[str, list[int]]:
    """The text of a file, and its ids. Raises ValueError for under `at_least` of them, and for what is not UTF-8."""
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not UTF-8: {error}") from None
    ids = encode(content)
    if len(ids) < at_least:
        raise ValueError(f"{text} is {len(ids)} token(s) long; {at_least} are needed to measure on")
    return content, ids


def measure_quality(
    model: Path, reference: Path, reference_name: str, text: Path | None, work: Path, *, at_least: int = 2
) -> Quality:
    """Run reference, then model, over the text: one of them in memory at a time. None: what the reference writes.

    The reference's log-probabilities, [n_tokens, n_vocab] fp32, wait in a file under `work` meanwhile. Raises
    ValueError for a text of under `at_least` tokens, and one that is not UTF-8.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows shows in the figures
        return _measure(model, reference, reference_name, text, work, at_least)


def _measure(
    model: Path, reference: Path, reference_name: str, text: Path | None, work: Path, at_least: int
) -> Quality:
    ids = [] if text else own_writing.write_text(reference)
    content = ",".join(map(str, ids))
    with Model(model) as opened:
        if text:
            content, ids = read_text(text, functools.partial(encode, opened), at_least)
        n_vocab = opened.config.vocab_size
    kept = work / "reference.logprobs"
    nll = _run_reference(reference, ids, kept)
    expected = np.memmap(kept, np.float32, "r", shape=(len(ids) - 1, n_vocab))
    model_nll, agree, divergences = _compare(model, ids, expected)
    n = len(ids) - 1
    perplexities = _perplexity(nll / n), _perplexity(model_nll / n)
    return Quality(
        reference=reference_name,
        text=text.name if text else own_writing.NAME,
        text_sha256=hashlib.sha256(content.encode()).hexdigest(),
        protocol=PROTOCOL,
        n_tokens=n,
        reference_perplexity=perplexities[0],
        perplexity=perplexities[1],
        loss_percent=100 * (perplexities[1] / perplexities[0] - 1),
        top1_agreement=agree / n,
        mean_kl=float(divergences.mean()),
        p99_kl=float(np.percentile(divergences, 99)),
    )


def _perplexity(mean_nll: float) -> float:
    """Infinite where `math.exp` would raise."""
    return math.inf if mean_nll > 700 else math.exp(mean_nll)


def _run_reference(folder: Path, ids: list[int], kept: Path) -> float:
    """Keep the log-probabilities in a file; returns the summed negative log-likelihood."""
    nll = 0.0
    with Model(folder, prepack=False) as model, kept.open("wb") as file:
        for targets, logprobs in _passes(model, ids, "reference"):
            nll -= _of_targets(logprobs, targets)
            file.write(np.ascontiguousarray(logprobs).data)
    return nll


def _compare(folder: Path, ids: list[int], expected: NDArray[np.float32]) -> tuple[float, int, NDArray[np.float64]]:
    """Summed negative log-likelihood, number of equal likeliest tokens, KL divergence of every position [n]."""
    nll, agree, done = 0.0, 0, 0
    divergences = np.empty(len(expected), np.float64)
    with Model(folder) as model:
        for targets, logprobs in _passes(model, ids, "model"):
            here = slice(done, done + len(targets))
            reference, done = expected[here], here.stop
            nll -= _of_targets(logprobs, targets)
            agree += int((logprobs.argmax(-1) == reference.argmax(-1)).sum())
            divergences[here] = (np.exp(reference) * (reference - logprobs)).sum(-1, dtype=np.float64)
    return nll, agree, divergences


def _of_targets(logprobs: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    return float(logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64))


def _passes(model: Model, ids: list[int], name: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    with tqdm(total=len(ids) - 1, desc=f"      {name}", unit="token") as bar:
        for targets, logprobs in log_probabilities(model, ids):
            yield targets, logprobs
            bar.update(len(targets))
