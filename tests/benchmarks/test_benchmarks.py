"""What the benchmarks compute, print and keep, without a peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint.config import Config
from export.checkpoint.random_weights import SIZES
from tests.benchmarks import baseline, bench, documents
from tests.benchmarks.bandwidth import read_bandwidth
from tests.benchmarks.contenders import OURS, Contender
from tests.benchmarks.results import BANDWIDTH, Results, speed_columns
from tests.benchmarks.statistic import describe, ratio

COLUMNS = speed_columns([512], [32], [])


@pytest.mark.parametrize(("values", "text"), [([], "-"), ([1.26], "1.3"), ([3, 1, 2.26], "2.3 (1.0-3.0)")])
def test_describe(values: list[float], text: str) -> None:
    assert describe(values, 1) == text


def make_results() -> Results:
    results = Results("GPT-2", "a machine")
    results.add(2, BANDWIDTH, {BANDWIDTH: 30e9})
    for decode, prefill in ((100, 0.3), (140, 0.2), (120, 0.4)):
        results.add(2, "ours", {"decode 32": decode, "prefill 512": prefill})
    results.add(2, "theirs", {"decode 32": 119, "prefill 512": 0.29})
    results.missing["third"] = "it cannot be installed"
    return results


def test_tables_have_medians_ranges_the_best_and_the_missing() -> None:
    text = make_results().markdown(COLUMNS)
    assert "| ours | **120 (100-140)** | 300 (200-400) |" in text
    assert "| theirs | 119 | **290** |" in text
    assert "| | cold start, s |" in text.replace("|  |", "| |")
    assert "Read bandwidth with 2 threads: 30.0 GB/s." in text
    assert "Missing: third: it cannot be installed" in text


def test_results_are_written_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results = make_results()
    results.write(path)
    results.add(1, "ours", {"decode 32": 60})
    results.write(path)
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    assert samples["2"]["ours"]["decode 32"] == [100, 140, 120]
    assert samples["1"]["ours"]["decode 32"] == [60]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(("part", "reached"), [(1.2, True), (0.76, True), (0.74, False), (2 / 3, False)])
def test_baseline_sees_a_third_lost_and_bears_noise(tmp_path: Path, part: float, reached: bool) -> None:
    path = tmp_path / "baseline.json"
    baseline.record({"decode": 4.0, "prefill": 0.6}, 2, path)
    assert baseline.compare({"decode": 4.0 * part, "prefill": 0.6}, 2, path)[1] is reached
    lines, both = baseline.compare({"decode": 4.0, "prefill": 0.6 * part}, 2, path)
    assert both is reached
    assert ("LOST" in lines[1]) is not reached


def test_baseline_is_of_a_kind_of_processor_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "baseline.json"
    monkeypatch.setattr(baseline, "processor_features", lambda: {"avx2", "avx_vnni", "sse"})
    baseline.record({"decode": 4.0}, 2, path)
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["avx_vnni, 2 threads"]
    assert baseline.compare({"decode": 0.1}, 1, path)[1]
    monkeypatch.setattr(baseline, "processor_features", lambda: None)
    assert baseline.compare({"decode": 0.1}, 2, path) == (
        ["no baseline for other, 2 threads; --record makes one"],
        True,
    )


def test_committed_baseline_has_both_ratios() -> None:
    for ratios in json.loads(baseline.BASELINE.read_text(encoding="utf-8")).values():
        assert set(ratios) == {"decode", "prefill"}


def test_ratio_is_that_of_each_round() -> None:
    assert ratio([100, 50, 90], [50, 25, 30]) == 2  # a round at half speed slows both


def test_bytes_a_token_are_the_matrices_of_the_checkpoint() -> None:
    shapes = Config().tensor_shapes()
    matrices = sum(int(np.prod(shape)) for name, shape in shapes.items() if len(shape) == 2 and name != "wpe.weight")
    assert bench.bytes_a_token(Contender("", "", (4, 4)), "gpt2") == 4 * matrices
    assert set(SIZES) >= {"gpt2-medium", "gpt2-xl"}


def test_missing_peer_is_reported_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def prepare(name: str, size: str) -> Path:
        if name == OURS:
            return tmp_path
        raise RuntimeError("no compiler")

    monkeypatch.setattr(bench, "prepare", prepare)
    monkeypatch.setattr(bench, "check", lambda _: 1.0)
    monkeypatch.setattr(bench.quality, "columns", lambda _: {"kl demo": 0.002})
    write_quality(tmp_path, upgraded=[])
    results = Results("", "")
    assert bench.prepare_all([OURS, "llama.cpp-q8_0"], "gpt2", results) == {OURS: tmp_path}
    assert results.quality == {"gpt2-edge int8": {"kl demo": 0.002}}
    assert results.missing == {"llama.cpp Q8_0": "no compiler"}
    built = "verified, equalized and calibrated; products with a more exact kernel: none"
    assert results.notes == [f"gpt2-edge int8: {built}"]
    assert built in results.markdown(COLUMNS)


def write_quality(folder: Path, **changes: object) -> None:
    """What a build says about itself."""
    said = {"verified": True, "calibrated": True, "upgraded": []} | changes
    (folder / "quality.json").write_text(json.dumps(said), encoding="utf-8")


def test_a_model_that_is_no_default_is_called_so(tmp_path: Path) -> None:
    write_quality(tmp_path, verified=False, calibrated=False, upgraded={"h.0.attn.c_attn": "fp32"})
    said = "not verified, not calibrated; products with a more exact kernel: h.0.attn.c_attn"
    assert bench.built_as(tmp_path) == said


def test_documents_get_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "benchmarks.md"
    readme.write_text("a\n<!-- begin speed -->\nold\n<!-- end speed -->\nb\n", encoding="utf-8")
    page.write_text(
        "<!-- begin ratios -->\n<!-- end ratios -->\n<!-- begin speed -->\n<!-- end speed -->\n", encoding="utf-8"
    )
    monkeypatch.setattr(bench.documents, "README", readme)
    monkeypatch.setattr(bench.documents, "BENCHMARKS", page)
    results = make_results()
    bench.write_documents(results, COLUMNS)
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("a", "b")
    assert "| ours | **120** | 300 | - |" in "\n".join(lines)  # medians alone
    assert "GPT-2, 2 threads: a machine." in lines
    assert "old" not in lines
    assert "0 of 12 targets are met, 12 were not measured." in page.read_text(encoding="utf-8")
    assert "| ours | **120 (100-140)** |" in page.read_text(encoding="utf-8")


def test_a_document_without_the_markers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("<!-- begin speed -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page.md has 0 parts between <!-- begin speed -->"):
        documents.replace(path, "speed", "text")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (documents.BENCHMARKS, "ratios"),
        (documents.BENCHMARKS, "speed"),
        (documents.BENCHMARKS, "growth"),
        (documents.README, "speed"),
        (documents.SMALL_DEVICES, "instructions"),
    ],
)
def test_the_documents_have_the_markers(path: Path, name: str, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    documents.replace(copy, name, "replaced")
    assert "\nreplaced\n" in copy.read_text(encoding="utf-8")


def test_peer_without_logits_is_timed_and_its_quality_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def columns(name: str) -> dict[str, float]:
        raise RuntimeError("it has no logits")

    monkeypatch.setattr(bench, "prepare", lambda *_: tmp_path)
    monkeypatch.setattr(bench, "check", lambda _: 1.0)
    monkeypatch.setattr(bench.quality, "columns", columns)
    results = Results("", "")
    assert bench.prepare_all(["llama.cpp-q8_0"], "gpt2", results) == {"llama.cpp-q8_0": tmp_path}
    assert results.missing == {"quality of llama.cpp Q8_0": "it has no logits"}


def test_speed_stands_beside_quality() -> None:
    results = make_results()
    results.quality["ours"] = {"kl demo": 0.0018, "loss demo": -0.001, "kl demo-stressed": 0.002}
    text = results.markdown(COLUMNS)
    assert "| demo: mean KL, 10⁻³ | demo: loss, % | stressed: mean KL, 10⁻³ | stressed: loss, % |" in text
    assert "| ours | **120 (100-140)** | 300 (200-400) | 1.80 | 0.00 | 2.00 | - |" in text


def test_read_bandwidth_is_of_this_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.bandwidth.N_BYTES", 1 << 24)
    assert 1e8 < read_bandwidth(2) < 1e13


def test_interrupt_leaves_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def take_turn(name: str, *_: object) -> dict[str, float]:
        if name != OURS:
            raise KeyboardInterrupt
        return {"decode 32": 100.0, "prefill 512": 0.5}

    output = tmp_path / "results.json"
    monkeypatch.setattr(bench, "prepare", lambda *_: tmp_path)
    monkeypatch.setattr(bench, "check", lambda _: 1.0)
    monkeypatch.setattr(bench.quality, "columns", lambda _: {"kl demo": 0.0018})
    monkeypatch.setattr(bench, "read_bandwidth", lambda _: 30e9)
    monkeypatch.setattr(bench, "take_turn", take_turn)
    write_quality(tmp_path)
    only = ["--only", OURS, "llama.cpp-q8_0"]
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--threads", "2", "--output", str(output), *only])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 130
    printed = capsys.readouterr().out
    assert "| gpt2-edge int8 | 100 | 500 | 1.80 | - |" in printed
    assert "| decode at 32 | 100 tok/s | - | - | 1.2 | not measured |" in printed
    kept = json.loads(output.read_text(encoding="utf-8"))
    assert kept["samples"]["2"]["gpt2-edge int8"]["decode 32"] == [100]
    assert kept["targets"][0]["met"] is None
