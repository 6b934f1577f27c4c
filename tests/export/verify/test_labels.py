"""A classifier's build: calibrated and verified on halves of a text, with better kernels where labels change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import build
from export.verify import labels
from export.verify.labels import LabelQuality, calibration_ids, halves
from export.verify.quality import Bounds
from runtime.graph.head import Head
from runtime.heads.classification import label_logits
from runtime.model.model import Model
from tests.support.checkpoints import edit_weights, some_ids
from tests.support.classifiers import LABELS, torch_labels, write_classifier, write_tagger

BOUNDS = Bounds(0.01, 0.5)


def build_whole(folder: Path, *options: str) -> dict[str, Any]:
    """Build with calibration and verification; returns quality.json."""
    target = folder.with_name(f"{folder.name}-built")
    build.main([str(folder), "--output", str(target), "--force", *options])
    found: dict[str, Any] = json.loads((target / "quality.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("write", "precision"),
    [
        (write_classifier, "int8"),
        pytest.param(write_classifier, "int4", marks=pytest.mark.slow),
        pytest.param(write_tagger, "int8", marks=pytest.mark.slow),
        pytest.param(write_tagger, "int4", marks=pytest.mark.slow),
    ],
)
def test_a_classifier_is_verified_by_its_labels(tmp_path: Path, write: Any, precision: str) -> None:
    oracle = write(tmp_path / "one")
    found = build_whole(tmp_path / "one", "--precision", precision, "--max-loss", "20")
    assert found["verified"]
    assert found["calibrated"]
    assert found["labelled"] == ("texts" if write is write_classifier else "tokens")
    assert found["n_labelled"] > 100
    assert found["label_agreement"] > 0.8
    assert 0 < found["mean_kl"] < 0.08
    rows = [some_ids(n, seed=n) for n in (5, 30)]
    card = (tmp_path / "one-built" / "README.md").read_text(encoding="utf-8")
    assert f"in {100 * found['label_agreement']:.2f} % of cases" in card
    with Model(tmp_path / "one-built", threads=1) as model:
        for ids, logits in zip(rows, label_logits(model, rows), strict=True):
            assert np.abs(logits - torch_labels(oracle, ids)).max() < 2


@pytest.mark.slow
def test_products_get_better_kernels_until_the_scores_are_near(tmp_path: Path) -> None:
    write_classifier(tmp_path / "one")
    usual = build_whole(tmp_path / "one", "--max-loss", "20")
    assert usual["upgraded"] == []
    bound = usual["mean_kl"] / 4
    better = build_whole(tmp_path / "one", "--max-kl", f"{bound:.9f}", "--max-loss", "20")
    assert better["upgraded"]
    assert better["mean_kl"] <= bound
    assert not {one["product"] for one in better["upgraded"]} & {"output", "score"}


@pytest.mark.slow
def test_without_calibration_every_sentence_is_verified(tmp_path: Path) -> None:
    write_classifier(tmp_path / "one")
    half = build_whole(tmp_path / "one", "--max-loss", "20")["n_labelled"]
    whole = build_whole(tmp_path / "one", "--no-calibration", "--max-loss", "20", "--max-kl", "1")
    assert not whole["calibrated"]
    assert half < whole["n_labelled"] <= 2 * half + 1


def test_a_damaged_classifier_is_not_published(tmp_path: Path) -> None:
    write_classifier(tmp_path / "one")
    edit_weights(tmp_path / "one", lambda weights: weights["score.weight"].__imul__(np.float32(1e38)))
    with pytest.raises(ValueError, match="the classifier's scores are NaN or infinite: not published"):
        build_whole(tmp_path / "one", "--no-calibration")


def test_the_halves_of_a_text_are_whole_sentences() -> None:
    content = "One. Two! Three?\n\nFour\nFive. Six"
    assert halves(content) == (["One.", "Three?", "Five."], ["Two!", "Four", "Six"])
    ids = calibration_ids(content, lambda text: list(text.encode()), 8)
    assert ids.shape[1] == 8
    assert bytes(ids.flatten().tolist()).decode() in "One.\nThree?\nFive."


def quality_of(head: Head, expected: list[list[float]], found: list[list[float]]) -> tuple[float | None, float]:
    first, second = np.array(expected, np.float32), np.array(found, np.float32)
    return labels._agreement(head, first, second), float(labels._divergences(head, first, second).mean())


def test_agreement_and_divergence_by_hand() -> None:
    softmax, sigmoid, value = (Head("sequence", LABELS[:2], kind) for kind in ("softmax", "sigmoid", "value"))
    agree, divergence = quality_of(softmax, [[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.9, 0.1]])
    assert agree == 0.5
    assert divergence == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)) / 2)
    agree, divergence = quality_of(sigmoid, [[0.5, 0.8], [0.9, 0.1]], [[0.25, 0.8], [0.9, 0.6]])
    assert agree == 0.5
    first = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert divergence == pytest.approx((first + 0.1 * math.log(0.1 / 0.6) + 0.9 * math.log(0.9 / 0.4)) / 2, rel=1e-5)
    agree, divergence = quality_of(value, [[0.0, 1.0], [2.0, 1.0]], [[1.0, 1.0], [2.0, 1.5]])
    assert agree is None
    assert divergence == pytest.approx((1 / 2 + 0.5**2 / 2) / 2)


@pytest.mark.parametrize(
    ("agreement", "mean_kl", "p99_kl", "excess"),
    [(1.0, 0.0, 0.0, 0.0), (0.98, 0.0, 0.0, 1.0), (0.96, 0.0, 0.0, 2.0), (1.0, 0.03, 0.0, 3.0), (None, 0.0, 0.4, 4.0)],
)
def test_the_largest_excess_counts(agreement: float | None, mean_kl: float, p99_kl: float, excess: float) -> None:
    found = LabelQuality("a", "b", "c", "d", "texts", 9, agreement, mean_kl, p99_kl, 0.0)
    assert found.excess(BOUNDS) == pytest.approx(excess)


def test_nan_is_the_largest_excess() -> None:
    found = LabelQuality("a", "b", "c", "d", "texts", 9, None, math.nan, 0.0, 0.0)
    assert found.excess(BOUNDS) == math.inf
    with pytest.raises(ValueError, match="not published"):
        found.check_numbers()
