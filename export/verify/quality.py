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

from export.verify import own_writing
from runtime.model.model import Model
from runtime.scoring.scoring import log_probabilities
from runtime.tokenization.encode import encode

PROTOCOL = "windows and stride of n_positions, nothing prepended, every token predicted once but the first"


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a model may lose against its reference, by default as `BOUNDS` has it.

    The KL divergence is the steadier measure: perplexity over some thousand tokens moves by 0.15 % for no reason.
    """

    mean_kl: float  # D(reference || model), natural logarithm
    loss_percent: float  # of perplexity, relative

    @property
    def p99_kl(self) -> float:
        """What 99 of 100 positions may diverge at most."""
        return 10 * self.mean_kl


BOUNDS = {"fp32": Bounds(0.0001, 0.01), "int8": Bounds(0.01, 0.5), "int4": Bounds(0.08, 4.0)}


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

    def excess(self, bounds: Bounds) -> float:
        """How many times more than allowed is lost, by the worst measure; at most 1 where all is within bounds."""
        pairs = (
            (self.mean_kl, bounds.mean_kl),
            (self.p99_kl, bounds.p99_kl),
            (self.loss_percent, bounds.loss_percent),
        )
        ratios = [_ratio(measured, bound) for measured, bound in pairs]
        return math.inf if any(math.isnan(ratio) for ratio in ratios) else max(ratios)

    def check_numbers(self) -> None:
        """Raise ValueError if the reference or the model computes no numbers."""
        if not math.isfinite(self.reference_perplexity) or not math.isfinite(self.perplexity):
            raise ValueError(
                f"the model's perplexity is {self.perplexity}, the reference's {self.reference_perplexity}: not "
                "published. Its weights are damaged, or too large for fp32 arithmetic"
            )

    def summary(self, bounds: Bounds) -> str:
        """The measured loss beside its bounds."""
        return (
            f"KL divergence {self.mean_kl:.4f} (at most {bounds.mean_kl}), at 99 of 100 positions {self.p99_kl:.3f} "
            f"({bounds.p99_kl:g}), perplexity {self.loss_percent:+.2f} % ({bounds.loss_percent})"
        )


def _ratio(measured: float, bound: float) -> float:
    if bound > 0:
        return measured / bound
    return math.inf if measured > 0 else 0.0


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
    """Run reference, then model, over the text; see `Verifier`."""
    return Verifier(reference, reference_name, text, work, at_least=at_least).measure(model)


class Verifier:
    """Measures models against one reference, which runs once: one model in memory at a time.

    The reference's log-probabilities, [n_tokens, n_vocab] fp32, wait in a file under `work` meanwhile.
    """

    def __init__(
        self, reference: Path, reference_name: str, text: Path | None, work: Path, *, at_least: int = 2
    ) -> None:
        """Run the reference. `text`: None is what the reference writes itself.

        Raises ValueError for a text of under `at_least` tokens, and one that is not UTF-8.
        """
        self._name = reference_name
        self._text_name = text.name if text else own_writing.NAME
        self._kept = work / "reference.logprobs"
        ids = [] if text else own_writing.write_text(reference)
        with Model(reference, prepack=False) as opened:
            self._n_vocab = opened.config.vocab_size
            self._content, self._ids = ",".join(map(str, ids)), ids
            if text:
                self._content, self._ids = read_text(text, functools.partial(encode, opened), at_least)
            # what overflows shows in the figures
            with np.errstate(over="ignore", invalid="ignore"):
                self._nll = _run_reference(opened, self._ids, self._kept)

    def measure(self, model: Path) -> Quality:
        """Run a model over the same text."""
        n = len(self._ids) - 1
        expected = np.memmap(self._kept, np.float32, "r", shape=(n, self._n_vocab))
        with np.errstate(over="ignore", invalid="ignore"):
            nll, agree, divergences = _compare(model, self._ids, expected)
        perplexities = _perplexity(self._nll / n), _perplexity(nll / n)
        return Quality(
            reference=self._name,
            text=self._text_name,
            text_sha256=hashlib.sha256(self._content.encode()).hexdigest(),
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


def _run_reference(model: Model, ids: list[int], kept: Path) -> float:
    """Keep the log-probabilities in a file; returns the summed negative log-likelihood."""
    nll = 0.0
    with kept.open("wb") as file:
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
