"""Measure how much quality a model loses against its reference; the runtime runs both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.verify import own_writing
from runtime.graph.attention import CacheType
from runtime.model.model import Model
from runtime.scoring.scoring import log_probabilities
from runtime.tokenization.encode import encode

PROTOCOL = "windows and stride of n_positions, nothing prepended, every token predicted once but the first"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much a model may lose against its reference; the defaults are `BOUNDS`.

    The KL divergence is the more reliable measure: over a few thousand tokens perplexity varies by 0.15 % by chance.

    mean_kl: the mean over positions of D(reference || model), in nats. loss_percent: of perplexity, relative.
    """

    mean_kl: float
    loss_percent: float

    @property
    def p99_kl(self) -> float:
        """The bound of the 99th percentile of the KL divergence."""
        return 10 * self.mean_kl


BOUNDS = {"fp32": Bounds(0.0001, 0.01), "int8": Bounds(0.01, 0.5), "int4": Bounds(0.08, 4.0)}


@dataclasses.dataclass(frozen=True)
class Quality:
    """The measured quality; `quality.json` has the same keys.

    text: its name. text_sha256: of the file; of the ids joined by commas where the model wrote the text. n_tokens: of
    the predicted tokens. loss_percent: of perplexity, relative. top1_agreement: the share of positions at which both
    models have the same likeliest token. mean_kl, p99_kl: mean and 99th percentile over positions of
    D(reference || model), in nats.
    """

    reference: str
    text: str
    text_sha256: str
    protocol: str
    n_tokens: int
    reference_perplexity: float
    perplexity: float
    loss_percent: float
    top1_agreement: float
    mean_kl: float
    p99_kl: float

    def excess(self, bounds: Bounds) -> float:
        """The largest ratio of a measure to its bound: at most 1 if all measures are within bounds."""
        pairs = (
            (self.mean_kl, bounds.mean_kl),
            (self.p99_kl, bounds.p99_kl),
            (self.loss_percent, bounds.loss_percent),
        )
        ratios = [_ratio(measured, bound) for measured, bound in pairs]
        return math.inf if any(math.isnan(ratio) for ratio in ratios) else max(ratios)

    def check_numbers(self) -> None:
        """Raise ValueError if a perplexity is NaN or infinite."""
        if not math.isfinite(self.reference_perplexity) or not math.isfinite(self.perplexity):
            raise ValueError(
                f"the model's perplexity is {self.perplexity}, the reference's {self.reference_perplexity}: not "
                "published. Its weights are damaged, or too large for fp32 arithmetic"
            )

    def summary(self, bounds: Bounds) -> str:
        """The measured loss with its bounds, in words."""
        return (
            f"KL divergence {self.mean_kl:.4f} (at most {bounds.mean_kl}), at 99 of 100 positions {self.p99_kl:.3f} "
            f"({bounds.p99_kl:g}), perplexity {self.loss_percent:+.2f} % ({bounds.loss_percent})"
        )


def _ratio(measured: float, bound: float) -> float:
    if bound > 0:
        return measured / bound
    return math.inf if measured > 0 else 0.0


def read_text(text: Path, encode: Callable[[str], list[int]], at_least: int) -> tuple[str, list[int]]:
    """The text of a file, and its ids. Raises ValueError for fewer than `at_least` ids, or a file that is not UTF-8."""
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is not UTF-8: {error}") from None
    ids = encode(content)
    if len(ids) < at_least:
        raise ValueError(f"{text} is {len(ids)} token(s) long; {at_least} are needed to measure on")
    return content, ids


class Text(NamedTuple):
    """A text to measure on: its file, None for a text that the reference samples, and the name in `quality.json`."""

    path: Path | None
    name: str


def measure_quality(
    model: Path, reference: Path, reference_name: str, text: Path, work: Path, *, at_least: int = 2
) -> Quality:
    """Run the reference, then the model, over the text of a file; see `Verifier`."""
    verifier = Verifier(reference, reference_name, Text(text, text.name), work, at_least=at_least)
    return verifier.measure(model)


class Verifier:
    """Measures models against one reference, which runs only once; one model is in memory at a time.

    The log-probabilities of the reference, [n_tokens, n_vocab] in fp32, are kept in a file in `work`.
    """

    def __init__(self, reference: Path, reference_name: str, text: Text, work: Path, *, at_least: int = 2) -> None:
        """Run the reference over the text.

        Raises ValueError for a text of fewer than `at_least` tokens, or one that is not UTF-8.
        """
        self._name = reference_name
        self._text_name = text.name
        self._kept = work / "reference.logprobs"
        # Sampled before the reference is opened below: each needs a session of its own.
        ids = own_writing.write_text(reference) if text.path is None else []
        with Model(reference, prepack=False) as opened:
            self._n_vocab = opened.config.vocab_size
            self._content = ",".join(map(str, ids))
            self._ids = ids
            if text.path is not None:
                self._content, self._ids = read_text(text.path, functools.partial(encode, opened), at_least)
            # Without warnings: an overflow shows in the figures.
            with np.errstate(over="ignore", invalid="ignore"):
                self._nll = _run_reference(opened, self._ids, self._kept)

    def measure(self, model: Path, cache: CacheType | None = None) -> Quality:
        """Run a model over the same text, and compare it with the reference. cache: as in `runtime.load`."""
        n = len(self._ids) - 1
        expected = np.memmap(self._kept, np.float32, "r", shape=(n, self._n_vocab))
        with np.errstate(over="ignore", invalid="ignore"):
            nll, agree, divergences = _compare(model, cache, self._ids, expected)
        reference_perplexity = _perplexity(self._nll / n)
        perplexity = _perplexity(nll / n)
        return Quality(
            reference=self._name,
            text=self._text_name,
            text_sha256=hashlib.sha256(self._content.encode()).hexdigest(),
            protocol=PROTOCOL,
            n_tokens=n,
            reference_perplexity=reference_perplexity,
            perplexity=perplexity,
            loss_percent=100 * (perplexity / reference_perplexity - 1),
            top1_agreement=agree / n,
            mean_kl=float(divergences.mean()),
            p99_kl=float(np.percentile(divergences, 99)),
        )


def _perplexity(mean_nll: float) -> float:
    """exp of the mean negative log-likelihood; infinity where `math.exp` would raise OverflowError."""
    return math.inf if mean_nll > 700 else math.exp(mean_nll)


def _run_reference(model: Model, ids: list[int], kept: Path) -> float:
    """Write the log-probabilities to a file; returns the summed negative log-likelihood."""
    nll = 0.0
    with kept.open("wb") as file:
        for targets, logprobs in _passes(model, ids, "reference"):
            nll -= _of_targets(logprobs, targets)
            file.write(np.ascontiguousarray(logprobs).data)
    return nll


def _compare(
    folder: Path, cache: CacheType | None, ids: list[int], expected: NDArray[np.float32]
) -> tuple[float, int, NDArray[np.float64]]:
    """Compare with the reference's log-probabilities `expected` [n, n_vocab].

    Returns the summed negative log-likelihood, the number of positions with the same likeliest token, and the KL
    divergence at each position [n].
    """
    nll = 0.0
    agree = 0
    done = 0
    divergences = np.empty(len(expected), np.float64)
    with Model(folder, cache=cache) as model:
        for targets, logprobs in _passes(model, ids, "model"):
            part = slice(done, done + len(targets))
            done += len(targets)
            reference = expected[part]
            nll -= _of_targets(logprobs, targets)
            agree += int((logprobs.argmax(-1) == reference.argmax(-1)).sum())
            divergences[part] = (np.exp(reference) * (reference - logprobs)).sum(-1, dtype=np.float64)
    return nll, agree, divergences


def _of_targets(logprobs: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """The summed log-probabilities of the targets [n], from those of all tokens [n, n_vocab]."""
    return float(logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64))


def _passes(model: Model, ids: list[int], name: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The targets [n] and log-probabilities [n, n_vocab] of each pass, with a progress bar."""
    with tqdm(total=len(ids) - 1, desc=f"      {name}", unit="token") as bar:
        for targets, logprobs in log_probabilities(model, ids):
            yield targets, logprobs
            bar.update(len(targets))
