"""Measure how often a classifier gives other labels than its fp32 graph; the runtime runs both."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.quantize.texts import Amount, Ids, cut_text
from export.verify.quality import Bounds, Text
from runtime.graph.head import TOKEN, Head
from runtime.heads.classification import label_logits
from runtime.model.model import Model

Floats = NDArray[np.float32]
Encode = Callable[[str], list[int]]
PROTOCOL = "each sentence or line a text, the ends of longer ones than n_positions left out"
CALIBRATION = Amount(8192, 128)
"""How much text a classifier is calibrated on; the texts are about as long as those that are labelled."""
LABELS_PER_LOSS = 4
"""So many times the allowed loss of perplexity, in per cent, is the allowed share of other labels."""
_BETWEEN = re.compile(r"(?<=[.!?])\s+|\n+")
# Probabilities below this count as this, so that the divergence stays finite.
_LEAST = 1e-7


@dataclasses.dataclass(frozen=True)
class LabelQuality:
    """The measured quality of a classifier; `quality.json` has the same keys.

    text, text_sha256: as in `export.verify.quality.Quality`. labelled: texts or tokens; n_labelled: how many.
    label_agreement: the share of them to which both models give the same labels: the likeliest, or all above 0.5 where
    a text may have several; None of a regression. mean_kl, p99_kl: mean and 99th percentile of D(reference || model)
    over the labels, in nats; of a regression half the squared difference in units of the reference's standard
    deviation. largest_difference: of a score.
    """

    reference: str
    text: str
    text_sha256: str
    protocol: str
    labelled: str
    n_labelled: int
    label_agreement: float | None
    mean_kl: float
    p99_kl: float
    largest_difference: float

    def excess(self, bounds: Bounds) -> float:
        """The largest ratio of a measure to its bound: at most 1 if all measures are within bounds."""
        pairs = [(self.mean_kl, bounds.mean_kl), (self.p99_kl, bounds.p99_kl)]
        if self.label_agreement is not None:
            pairs.append((100 * (1 - self.label_agreement), LABELS_PER_LOSS * bounds.loss_percent))
        ratios = [measured / bound if bound > 0 else math.inf if measured > 0 else 0.0 for measured, bound in pairs]
        return math.inf if any(math.isnan(ratio) for ratio in ratios) else max(ratios)

    def check_numbers(self) -> None:
        """Raise ValueError for a model whose scores are NaN or infinite."""
        if not math.isfinite(self.mean_kl) or not math.isfinite(self.largest_difference):
            raise ValueError(
                "the classifier's scores are NaN or infinite: not published. Its weights are damaged, or too large for "
                "fp32 arithmetic"
            )

    def summary(self, bounds: Bounds) -> str:
        """The measured loss with its bounds, in words."""
        labels = ""
        if self.label_agreement is not None:
            other = 100 * (1 - self.label_agreement)
            labels = f"other labels {other:.2f} % (at most {LABELS_PER_LOSS * bounds.loss_percent:g}), "
        return (
            f"{labels}KL divergence {self.mean_kl:.4f} (at most {bounds.mean_kl}), at 99 of 100 texts "
            f"{self.p99_kl:.3f} ({bounds.p99_kl:g})"
        )


def halves(content: str) -> tuple[list[str], list[str]]:
    """The sentences of a text that a classifier is calibrated on, and those that it is verified on: every other one."""
    sentences = [one.strip() for one in _BETWEEN.split(content) if one.strip()]
    return sentences[::2], sentences[1::2]


def calibration_ids(content: str, encode: Encode, n_positions: int) -> Ids:
    """Half of a text, cut into texts of equal length: ids [n_texts, n_tokens]."""
    ids = encode("\n".join(halves(content)[0]))
    amount = dataclasses.replace(CALIBRATION, longest=min(CALIBRATION.longest, len(ids)))
    return cut_text(ids, n_positions, amount)


class LabelVerifier:
    """Measures classifiers against one reference, which runs only once."""

    def __init__(self, reference: Path, reference_name: str, text: Text, encode: Encode, *, is_half: bool) -> None:
        """Run the reference over the sentences of the text; is_half: over those that calibration has not read.

        Raises ValueError for a text without such sentences.
        """
        if text.path is None:
            raise AssertionError("a classifier writes no text of its own")
        self._name = reference_name
        self._text_name = text.name
        self._content = text.path.read_text(encoding="utf-8")
        read, unread = halves(self._content)
        self._rows = [encode(sentence) for sentence in (unread if is_half else read + unread)]
        self._rows = [ids for ids in self._rows if ids]
        if not self._rows:
            raise ValueError(f"{text.path} has too few sentences to measure a classifier on; --eval-text names another")
        with Model(reference, prepack=False) as opened:
            self._head = opened.check_classifier()
            self._rows = [ids[: opened.config.n_positions] for ids in self._rows]
            self._expected = _scores(opened, self._rows)

    def measure(self, model: Path) -> LabelQuality:
        """Run a model over the same texts, and compare it with the reference."""
        with Model(model) as opened:
            found = _scores(opened, self._rows)
        with np.errstate(over="ignore", invalid="ignore"):
            divergences = _divergences(self._head, self._expected, found)
        return LabelQuality(
            reference=self._name,
            text=self._text_name,
            text_sha256=hashlib.sha256(self._content.encode()).hexdigest(),
            protocol=PROTOCOL,
            labelled="tokens" if self._head.kind == TOKEN else "texts",
            n_labelled=len(found),
            label_agreement=_agreement(self._head, self._expected, found),
            mean_kl=float(divergences.mean()),
            p99_kl=float(np.percentile(divergences, 99)),
            largest_difference=float(np.abs(found - self._expected).max()),
        )


def _scores(model: Model, rows: Sequence[Sequence[int]]) -> Floats:
    """The scores of all texts, or of all their tokens: [n_labelled, n_labels]."""
    head = model.check_classifier()
    logits = label_logits(model, rows)
    joined: Floats = np.concatenate(logits) if head.kind == TOKEN else np.stack(logits)
    # Without warnings: an overflow shows in the figures.
    with np.errstate(over="ignore", invalid="ignore"):
        return head.scores_of(joined)


def _agreement(head: Head, expected: Floats, found: Floats) -> float | None:
    if head.scores == "value":
        return None
    if head.scores == "sigmoid":
        return float(((expected > 0.5) == (found > 0.5)).all(-1).mean())
    return float((expected.argmax(-1) == found.argmax(-1)).mean())


def _divergences(head: Head, expected: Floats, found: Floats) -> NDArray[np.float64]:
    """How far the scores of each text are from the expected, [n_labelled]."""
    wanted = expected.astype(np.float64)
    given = found.astype(np.float64)
    if head.scores == "value":
        spread = wanted.std(0)
        units: NDArray[np.float64] = (given - wanted) / np.where(spread > 0, spread, 1.0)
        return np.asarray(np.square(units).sum(-1) / 2)
    divergences = _terms(wanted, given)
    if head.scores == "sigmoid":
        divergences = divergences + _terms(1 - wanted, 1 - given)
    return np.asarray(divergences.sum(-1))


def _terms(expected: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = np.maximum(expected, _LEAST) / np.maximum(found, _LEAST)
    return np.asarray(expected * np.log(ratio))
