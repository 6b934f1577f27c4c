"""What verification measures, against the same figures computed with transformers, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export import build, pipeline
from export.arguments import parse
from export.checkpoint import checkpoint
from export.quantize import precision
from export.quantize.blocks import quantize
from export.verify.quality import Bounds, Quality, measure_quality
from runtime.model.model import Model
from tests.conftest import DEMO
from tests.support.checkpoints import Weights, build_model, edit_weights, open_checkpoint, write_checkpoint

TEXT = "Había una vez un ratón que vivía en el monte. One day it saw the moon, and ran home to tell everyone. " * 4
GOOD = Quality("reference", "text", "0", "protocol", 10, 20.0, 20.1, 0.5, 0.9, 0.01, 0.05)


def log_probabilities(oracle: GPT2LMHeadModel, ids: list[int], size: int) -> NDArray[np.float64]:
    """[len(ids) - 1, n_vocab] by transformers: windows of `size`, one after the other."""
    rows = []
    for begin in range(0, len(ids) - 1, size):
        with torch.no_grad():
            logits = oracle(torch.tensor([ids[begin : begin + size]])).logits[0].double()
        rows.append(torch.log_softmax(logits, -1).numpy())
    return np.concatenate(rows)[: len(ids) - 1]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two checkpoints as model folders, and by transformers."""

    folders: list[Path]
    oracles: list[GPT2LMHeadModel]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parent = tmp_path_factory.mktemp("quality")
    write_checkpoint(parent / "a")
    shutil.copytree(parent / "a", parent / "b")
    noise = np.random.default_rng(0)

    def disturb(weights: Weights) -> None:
        for weight in weights.values():
            np.add(weight, noise.normal(0, 0.02, weight.shape).astype(np.float32), out=weight)

    edit_weights(parent / "b", disturb)
    (parent / "text.txt").write_text(TEXT, encoding="utf-8")
    folders = [build_model(parent / name) for name in "ab"]
    return Pair(folders, [open_checkpoint(parent / name) for name in "ab"])


def test_figures_are_those_of_transformers(pair: Pair, tmp_path: Path) -> None:
    reference, model = pair.folders
    measured = measure_quality(model, reference, "a", reference.parent / "text.txt", tmp_path)
    with Model(model) as opened:
        ids = opened.tokenizer.encode(TEXT).ids
    p, q = (log_probabilities(oracle, ids, 96) for oracle in pair.oracles)
    targets = np.arange(len(ids) - 1), ids[1:]
    perplexities = [math.exp(-each[targets].mean()) for each in (p, q)]
    assert (measured.reference, measured.text, measured.n_tokens) == ("a", "text.txt", len(ids) - 1)
    assert [measured.reference_perplexity, measured.perplexity] == pytest.approx(perplexities, rel=1e-5)
    assert measured.loss_percent == pytest.approx(100 * (perplexities[1] / perplexities[0] - 1), rel=1e-3)
    assert measured.top1_agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert measured.mean_kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)
    assert 0.5 < measured.top1_agreement < 1


def test_a_model_has_no_loss_against_itself(pair: Pair, tmp_path: Path) -> None:
    folder = pair.folders[0]
    measured = measure_quality(folder, folder, "itself", folder.parent / "text.txt", tmp_path)
    assert abs(measured.loss_percent) < 1e-4
    assert measured.top1_agreement == 1
    assert abs(measured.mean_kl) < 1e-6


def test_perplexity_of_the_demo_is_that_of_transformers_to_4_digits(demo_int8_folder: Path) -> None:
    recorded = json.loads((demo_int8_folder / "quality.json").read_text(encoding="utf-8"))
    with Model(demo_int8_folder) as model:
        ids = model.tokenizer.encode((DEMO / "evaluation.txt").read_text(encoding="utf-8")).ids
    by_transformers = log_probabilities(open_checkpoint(DEMO), ids, 512)
    perplexity = math.exp(-by_transformers[np.arange(len(ids) - 1), ids[1:]].mean())
    assert recorded["n_tokens"] == len(ids) - 1
    assert recorded["reference_perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert recorded["perplexity"] == pytest.approx(perplexity, rel=0.005)


@pytest.fixture
def short_demo(tmp_path: Path) -> Path:
    """The demo with a text that is quickly measured."""
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    (folder / "evaluation.txt").write_text(text[:2000], encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("source", "text", "name"),
    [
        (DEMO, None, "models/demo/evaluation.txt"),
        ("short", None, "demo/evaluation.txt"),
        ("bare", None, "export/evaluation.txt"),
        (DEMO, "mine.txt", "mine.txt"),
    ],
    ids=["repository", "elsewhere", "without text", "named"],
)
def test_the_text_is_named_so_that_texts_are_told_apart(
    short_demo: Path, tmp_path: Path, source: Path | str, text: str | None, name: str
) -> None:
    folder = short_demo if isinstance(source, str) else source
    if source == "bare":
        (folder / "evaluation.txt").unlink()
    typed = [str(folder)]
    if text:
        (tmp_path / text).write_text(TEXT, encoding="utf-8")
        typed += ["--eval-text", str(tmp_path / text)]
    options = parse(typed)
    assert pipeline.text_name(checkpoint.open_checkpoint(str(folder), tmp_path), options) == name


def test_a_model_made_worse_ends_at_fp32(short_demo: Path, tmp_path: Path) -> None:
    def coarse(matrix: NDArray[np.float32], block_size: int) -> Any:
        quantized, scales = quantize(matrix, block_size)
        return ((quantized + 16) // 32 * 32).clip(0, 255).astype(np.uint8), scales

    arguments = [str(short_demo), "--output", str(tmp_path / "model"), "--no-reference", "--kernel", "block"]
    arguments += ["--no-calibration"]
    with mock.patch.object(precision, "quantize", coarse):
        build.main(arguments)
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert {one["kernel"] for one in report["upgraded"]} == {"fp32"}
    # What the int8 cache costs.
    assert report["mean_kl"] < 2e-3


@pytest.mark.parametrize(("factor", "perplexity"), [(1e38, "nan"), (1e4, "inf")])
def test_a_model_that_overflows_is_refused(tmp_path: Path, factor: float, perplexity: str) -> None:
    def enlarge(weights: Weights) -> None:
        weights["transformer.ln_f.weight"] *= factor

    write_checkpoint(tmp_path / "large")
    edit_weights(tmp_path / "large", enlarge)
    (tmp_path / "large" / "evaluation.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match=f"perplexity is {perplexity}, the reference's {perplexity}: not published"):
        typed = ["--output", str(tmp_path / "model"), "--no-reference", "--no-calibration"]
        build.main([str(tmp_path / "large"), *typed])


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_perplexity_that_is_no_number_is_refused(perplexity: float) -> None:
    for name in ("perplexity", "reference_perplexity"):
        with pytest.raises(ValueError, match="not published"):
            dataclasses.replace(GOOD, **{name: perplexity}).check_numbers()
    GOOD.check_numbers()


@pytest.mark.parametrize(
    ("bounds", "excess"),
    [
        (Bounds(mean_kl=0.01, loss_percent=0.5), 1.0),
        (Bounds(mean_kl=0.005, loss_percent=0.5), 2.0),
        (Bounds(mean_kl=0.02, loss_percent=0.1), 5.0),
        (Bounds(mean_kl=0.0, loss_percent=1.0), math.inf),
    ],
)
def test_the_worst_measure_decides(bounds: Bounds, excess: float) -> None:
    assert GOOD.excess(bounds) == pytest.approx(excess)


def test_a_gain_is_no_loss_and_no_number_is_too_much() -> None:
    assert dataclasses.replace(GOOD, loss_percent=-3.0).excess(Bounds(0.1, 0.0)) <= 1
    assert dataclasses.replace(GOOD, mean_kl=math.nan).excess(Bounds(0.1, 1.0)) == math.inf


def test_a_text_of_the_users_is_named_with_its_hash_and_what_was_measured(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text(TEXT * 8, encoding="utf-8")
    checkpoint = str(pair.folders[0].parent / "a")
    build.main([checkpoint, "--no-reference", "--eval-text", "mine.txt", "--output", "model", "--max-loss", "5"])
    recorded = json.loads(Path("model", "quality.json").read_text(encoding="utf-8"))
    card = " ".join(Path("model", "README.md").read_text(encoding="utf-8").split())
    settings = {"verified", "random_weights", "precision", "kernel", "block_size", "versions"}
    settings |= {"activations", "calibrated", "upgraded", "cache"}
    assert recorded.keys() == settings | {field.name for field in dataclasses.fields(Quality)}
    assert recorded["versions"].keys() == {"onnx", "onnxruntime", "numpy", "tokenizers"}
    assert (recorded["verified"], recorded["text"]) == (True, "mine.txt")
    assert recorded["text_sha256"] == hashlib.sha256(Path("mine.txt").read_bytes()).hexdigest()
    assert recorded["n_tokens"] == len(Path("mine.txt").read_bytes()) - 1
    for figure in ("reference_perplexity:.3f", "perplexity:.3f", "loss_percent:.3f", "mean_kl:.5f", "p99_kl:.4f"):
        assert f"{{{figure}}}".format(**recorded) in card
    assert f"{recorded['n_tokens']:,} tokens of `mine.txt`" in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 1999, r"mine.txt is 1999 token\(s\) long; 2000 are needed"),
        (b"\xff" * 4000, "mine.txt is not UTF-8"),
    ],
)
def test_a_text_of_the_users_is_refused_before_the_work(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    arguments = ["--no-reference", "--eval-text", str(tmp_path / "mine.txt"), "--output", str(tmp_path / "model")]
    with pytest.raises(ValueError, match=message):
        build.main([str(pair.folders[0].parent / "a"), *arguments])
    assert "[2/6]" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_verification_the_folder_says_so(pair: Pair) -> None:
    folder = pair.folders[0]  # built with --verify none
    assert json.loads((folder / "quality.json").read_text(encoding="utf-8"))["verified"] is False
    assert "Not verified: this model was built with `--verify none`" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_too_short_to_measure_is_named(pair: Pair, tmp_path: Path, text: str) -> None:
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"short.txt is {len(text)} token\(s\) long"):
        measure_quality(pair.folders[0], pair.folders[0], "itself", tmp_path / "short.txt", tmp_path)
