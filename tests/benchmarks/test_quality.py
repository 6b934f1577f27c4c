"""The benchmark's quality columns, with ours and stand-ins for the peers."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import GPT2LMHeadModel

from tests.benchmarks import contenders, quality, worker
from tests.benchmarks.contenders import DEMO_SIZE, OURS, STRESSED, Contender
from tests.benchmarks.quality import Loss
from tests.conftest import DEMO
from tests.support.checkpoints import difference, torch_logits

TARGETS = np.array([0, 1, 2, 0])


def log_of(rows: list[list[float]]) -> Any:
    return np.log(np.array(rows, np.float32))


def test_loss_is_that_of_the_textbook() -> None:
    expected = log_of([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    found = log_of([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.5, 0.3, 0.2]])
    shifted = found + np.float32(7)  # logits are free up to a constant
    loss = quality.compare(expected, shifted, TARGETS)
    kl = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert loss.n_tokens == 4
    assert loss.mean_kl == pytest.approx(kl / 4, rel=1e-5)
    assert loss.p99_kl == pytest.approx(0.97 * kl, rel=1e-5)  # between the highest and the next of four
    assert loss.top1_agreement == 0.75
    assert loss.perplexity == pytest.approx((0.25 * 0.6 * 0.8 * 0.5) ** -0.25, rel=1e-5)
    assert loss.loss_percent == pytest.approx(100 * (2**0.25 - 1), rel=1e-5)


def test_loss_does_not_depend_on_how_many_rows_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 50, 9)).astype(np.float32)
    logprobs = rows[0] - np.log(np.exp(rows[0]).sum(-1, keepdims=True))
    whole = quality.compare(logprobs, rows[1], np.arange(50) % 9)
    monkeypatch.setattr(quality, "N_ROWS", 7)
    parts = quality.compare(logprobs, rows[1], np.arange(50) % 9)
    assert parts.n_tokens == whole.n_tokens and parts.top1_agreement == whole.top1_agreement
    assert parts.mean_kl == pytest.approx(whole.mean_kl)


@pytest.mark.parametrize("n", [2, 4, 5, 9, 10])
def test_windows_predict_each_id_but_the_first_once(n: int) -> None:
    ids = list(range(n))
    found = quality.windows(ids, 4)
    assert [id_ for window in found for id_ in window] == ids[:-1]
    assert all(1 <= len(window) <= 4 for window in found)


def test_stressed_demo_is_written_once_and_is_another_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    folder = contenders.prepare("transformers-fp32", STRESSED)
    assert folder == tmp_path / STRESSED / "checkpoint"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert contenders.prepare("transformers-fp32", STRESSED) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


class Oracle:
    """A peer whose logits are those of a table, [n_vocab] an id."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.table = np.random.default_rng(len(folder.name)).standard_normal((8192, 8192), np.float32)

    def logits(self, ids: list[int]) -> Any:
        return self.table[ids]


class Forgetful(Oracle):
    def logits(self, ids: list[int]) -> Any:
        return self.table[ids[1:]]


def peer_of(model: type) -> ModuleType:
    module = ModuleType("peer")
    module.Peer = model  # type: ignore[attr-defined]
    return module


def test_worker_writes_the_logits_of_all_windows(tmp_path: Path) -> None:
    target = tmp_path / "logits"
    shape = worker.logits(peer_of(Oracle), "folder", 1, windows=[[1, 2, 3], [4]], target=str(target))
    assert shape == (4, 8192)
    found = np.fromfile(target, np.float32).reshape(shape)
    assert np.array_equal(found, Oracle(Path("folder"), 1).table[[1, 2, 3, 4]])


def test_worker_refuses_a_peer_that_keeps_some_logits_to_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the logits at 3 ids were asked for, and 2 came"):
        worker.logits(peer_of(Forgetful), "folder", 1, windows=[[1, 2, 3]], target=str(tmp_path / "logits"))


def ask_stand_in(asked: list[str]) -> Callable[..., object]:
    """Workers whose logits are the next id's with more certainty the longer their peer's name."""

    def ask(contender: Contender, task: str, **given: Any) -> object:
        asked.append(f"{contender.peer} {task}")
        if task == "convert":
            Path(given["folder"]).mkdir()
            return None
        n = sum(map(len, given["windows"]))
        logits = np.zeros((n, 16), np.float32)
        logits[:, 0] = len(contender.peer)
        logits.tofile(given["target"])
        return logits.shape

    return ask


def test_figures_are_kept_until_a_folder_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    monkeypatch.setattr(quality, "PLACE", tmp_path)
    monkeypatch.setattr(quality, "ask", ask_stand_in(asked))
    monkeypatch.setattr(contenders, "ask", ask_stand_in(asked))
    monkeypatch.setattr(quality, "read_ids", lambda: ([0] * 600, 512))
    first = quality.measure("ctranslate2-int8", DEMO_SIZE)
    assert quality.measure("ctranslate2-int8", DEMO_SIZE) == first
    assert asked == ["ctranslate2 convert", "transformers logits", "ctranslate2 logits"]
    assert first.n_tokens == 599 and first.mean_kl > 0 and first.loss_percent > 0
    os.utime(tmp_path / DEMO_SIZE / "ctranslate2-int8", (3e9, 3e9))
    quality.measure("ctranslate2-int8", DEMO_SIZE)
    assert asked[3:] == ["ctranslate2 logits"]
    left = {path.name for path in (tmp_path / DEMO_SIZE).iterdir()}
    assert left == {"ctranslate2-int8", "ctranslate2-int8.quality.json", "reference.logprobs"}


LOSS = Loss(n_tokens=9, perplexity=45.0, loss_percent=-0.001, top1_agreement=0.96, mean_kl=0.00184, p99_kl=0.01)


def test_table_has_both_checkpoints_and_the_missing() -> None:
    text = quality.markdown({"ours": {DEMO_SIZE: LOSS, STRESSED: LOSS}}, {"theirs": "no compiler"})
    assert "| ours | 1.84 | 10.0 | +0.00 | 96.0 | 1.84 | 10.0 | +0.00 | 96.0 |" in text
    assert text.endswith("Missing: theirs: no compiler")


def test_command_goes_on_without_a_peer_and_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, size: str) -> Loss:
        if name == "openvino-int8":
            raise RuntimeError("it cannot be installed")
        if name == "transformers-fp32":
            raise KeyboardInterrupt
        return LOSS

    monkeypatch.setattr(quality, "measure", measure)
    names = [OURS, "openvino-int8", "transformers-fp32", "optimum-fp32"]
    output = tmp_path / "new" / "quality.json"
    monkeypatch.setattr("sys.argv", ["quality", "--only", *names, "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        quality.main()
    assert ended.value.code == 130
    assert "| gpt2-edge int8 | 1.84" in capsys.readouterr().out
    kept = json.loads(output.read_text(encoding="utf-8"))
    assert set(kept["losses"]) == {"gpt2-edge int8"}
    assert kept["missing"] == {"OpenVINO GenAI int8": "it cannot be installed"}


@pytest.mark.slow
def test_ours_is_measured_as_the_build_measures_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_int8_folder: Path
) -> None:
    monkeypatch.setattr(contenders, "PLACE", tmp_path)
    monkeypatch.setattr(quality, "PLACE", tmp_path)
    monkeypatch.setattr(quality, "prepare", lambda name, _: DEMO if name == quality.REFERENCE else demo_int8_folder)
    loss = quality.measure(OURS, DEMO_SIZE)
    built = json.loads((demo_int8_folder / "quality.json").read_text(encoding="utf-8"))
    assert loss.n_tokens == built["n_tokens"]
    for name in ("perplexity", "loss_percent", "top1_agreement", "mean_kl", "p99_kl"):
        assert getattr(loss, name) == pytest.approx(built[name], rel=1e-3), name


@pytest.mark.parametrize("name", ["edge", "onnxruntime_genai", "optimum", "transformers"])
def test_peers_of_this_environment_give_logits(
    name: str, demo_fp32_folder: Path, demo_reference_folder: Path, torch_demo: GPT2LMHeadModel
) -> None:
    folders = {"optimum": demo_reference_folder, "transformers": DEMO}
    peer = importlib.import_module(f"tests.benchmarks.peers.{name}").Peer(folders.get(name, demo_fp32_folder), 1)
    for ids in ([5, 6, 7], list(range(100, 400))):
        assert difference(peer.logits(ids), torch_logits(torch_demo, ids)) < 1e-4
