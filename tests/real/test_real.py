"""`make real`: every precision of a checkpoint in one table, end to end on tiny checkpoints and on the demo."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.random_weights import SIZES
from tests.benchmarks.bench import machine
from tests.conftest import DEMO, REPOSITORY
from tests.real import __main__ as real
from tests.real import measure, models, published
from tests.real.report import Report, Row
from tests.support.building import write_tiny

ALL = {"strided full", "strided half", "rolling", *measure.LAMBADA.values()}
QUICK = ("--no-reference",)


# published figures -------------------------------------------------------------------------------------------------


def test_published_figures_belong_to_columns_and_say_where_they_stand() -> None:
    assert set(published.PUBLISHED) <= set(SIZES)
    for sources in published.PUBLISHED.values():
        for source in sources:
            assert source.url.startswith("https://")
            assert source.figures and set(source.figures) <= ALL


@pytest.mark.parametrize("name", ["distilgpt2", "gpt2", "gpt2-xl"])
def test_size_is_told_by_the_shape(name: str) -> None:
    assert published.size_of(SIZES[name]) == name


def test_other_shapes_have_no_published_figures(demo_fp32: Any) -> None:
    assert published.size_of(demo_fp32.config) is None


# the report --------------------------------------------------------------------------------------------------------


def make_report() -> Report:
    report = Report("gpt2", "a machine", n_positions=1024, size="gpt2")
    upgraded = [{"product": "h.3.mlp.c_proj", "kernel": "block 32", "error": 0.01}]
    int8 = {
        "strided full": 29.99,
        "lambada word": 0.3251,
        "recorded likeliest": 180,
        "recorded n": 199,
        "decode": 246.4,
    }
    report.rows = [
        Row("int8", int8, "dense", upgraded),
        Row("int4", problem="int4 was not built: the model loses 9 % of perplexity"),
        Row("fp32", {"strided full": 29.94, "loss_percent": -0.00001}, "fp32"),
    ]
    return report


def test_table_has_measures_beside_published_figures() -> None:
    text = make_report().markdown()
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
    assert "WikiText-2, stride 1024" in head and "99th percentile" not in head
    assert len({line.count("|") for line in (head, *rows)}) == 1
    assert "| int8 | 29.99 |" in cells["int8"] and " 32.51 |" in cells["int8"] and " 180 of 199 |" in cells["int8"]
    assert "| GPT-2 paper, Table 3 | 29.41 |" in cells["GPT-2 paper, Table 3"]
    assert " 32.56 |" in cells["lm-evaluation-harness, issue 2159"]
    assert "| 0.000 |" in cells["fp32"]


def test_table_says_what_is_not_in_it() -> None:
    report = make_report()
    report.missing, report.limit = ["No text at lambada.jsonl"], 40
    text = report.markdown()
    assert "int8, products with a better kernel than dense: h.3.mlp.c_proj: block 32" in text
    assert "int4 was not built: the model loses 9 % of perplexity" in text
    assert "No text at lambada.jsonl" in text
    assert "Only the first 40 lines of each text were read" in text
    assert "shape of OpenAI's gpt2; whether they are OpenAI's is not known" in text
    report.weights = "OpenAI's own gpt2 weights (SHA-256 verified)"
    assert "The weights are OpenAI's own gpt2 weights (SHA-256 verified)." in report.markdown()


def test_report_is_written_as_json_and_markdown(tmp_path: Path) -> None:
    report = make_report()
    report.write(tmp_path / "new")
    kept = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert kept["rows"][0]["measures"]["strided full"] == 29.99
    assert kept["rows"][0]["upgraded"][0]["product"] == "h.3.mlp.c_proj"
    assert kept["published"]["GPT-2 paper, Table 3"]["figures"]["lambada perplexity"] == 35.13
    assert (tmp_path / "new" / "report.md").read_text(encoding="utf-8") == report.markdown() + "\n"
    assert len(list((tmp_path / "new").iterdir())) == 2


# builds ------------------------------------------------------------------------------------------------------------


def test_reason_is_the_builds_own() -> None:
    assert models.reason("layers: 100%\rerror: first\nTraceback\nerror: the disk is full\n\n") == "the disk is full"
    assert models.reason("Killed\n") is None


def test_refused_build_is_told_with_its_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint").mkdir()
    built = models.build(str(tmp_path / "checkpoint"), "int8", tmp_path, [], reuse=False)
    assert built.refused is not None and "config.json is missing" in built.refused
    assert "config.json is missing" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_ctrl_c_ends_the_build_that_runs_once(tmp_path: Path) -> None:
    """The command's own child gets one signal, and has the time to clean up."""
    child = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.3)\n"
        f"    with open({str(tmp_path / 'ended')!r}, 'a') as file: file.write('x')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path / 'began')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    parent = f"import sys; from tests.real import models; models.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=REPOSITORY, stderr=subprocess.PIPE)
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert (tmp_path / "ended").read_text(encoding="utf-8") == "x"


# measures ----------------------------------------------------------------------------------------------------------


def test_recorded_outputs_of_this_very_model_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_fp32_folder: Path
) -> None:
    assert measure.measure_recorded(demo_fp32_folder) == {}
    golden = json.loads((demo_fp32_folder / "golden.json").read_text(encoding="utf-8"))["records"]
    scored = [record | {"logprob": sum(record["logprobs"]) + 0.5 * len(record["ids"])} for record in golden]
    recorded = tmp_path / "recorded.json"
    recorded.write_text(json.dumps({"records": golden, "scored": scored}), encoding="utf-8")
    monkeypatch.setattr(measure, "RECORDED", recorded)
    monkeypatch.setattr(measure, "size_of", lambda _: "gpt2")
    found = measure.measure_recorded(demo_fp32_folder)
    assert found["recorded likeliest"] == found["recorded n"] == sum(len(record["ids"]) for record in golden)
    assert found["recorded difference"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("report", "kernel"),
    [
        ({"precision": "int8", "kernel": "dense", "block_size": None}, "dense"),
        ({"precision": "int8", "kernel": "block", "block_size": 64}, "block 64"),
        ({"precision": "int4", "kernel": "block", "block_size": 32}, "block 32"),
        ({"precision": "fp32", "kernel": "block", "block_size": None}, "fp32"),
        ({"precision": "int8", "kernel": "block 64"}, "block 64"),
        ({"precision": "int8"}, "int8"),
    ],
)
def test_kernel_is_read_from_the_builds_report(tmp_path: Path, report: dict[str, Any], kernel: str) -> None:
    (tmp_path / "quality.json").write_text(json.dumps(report | {"mean_kl": 0.002}), encoding="utf-8")
    assert measure.read_quality(tmp_path) == ({"mean_kl": 0.002}, kernel, [])


def test_upgraded_products_are_read_from_the_builds_report(tmp_path: Path) -> None:
    upgraded = [{"product": "h.3.mlp.c_proj", "kernel": "block 32", "error": 0.01}]
    report = {"precision": "int8", "kernel": "dense", "upgraded": upgraded}
    (tmp_path / "quality.json").write_text(json.dumps(report), encoding="utf-8")
    assert measure.read_quality(tmp_path) == ({}, "dense", upgraded)


# the command -------------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> list[str]:
    wikitext, lambada = folder / "wiki.raw", folder / "lambada.jsonl"
    wikitext.write_text(" = Title = \n \n A line of some words , and one more . \n" * 20, encoding="utf-8")
    lambada.write_text(json.dumps({"text": "A tiny model needs a tiny text"}) + "\n", encoding="utf-8")
    return ["--wikitext", str(wikitext), "--lambada", str(lambada)]


def test_tiny_checkpoint_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint, output = write_tiny(tmp_path / "tiny"), tmp_path / "output"
    work = [str(checkpoint), "--output", str(output), "--precisions", "int8", "fp32", "--threads", "1"]
    assert real.main([*work, *write_texts(tmp_path), "--", *QUICK]) == 0
    printed = capfd.readouterr().out
    kept = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert kept["size"] is None and kept["missing"] == [] and kept["machine"].startswith(machine())
    for row in kept["rows"]:
        assert set(row["measures"]) >= {*ALL, "decode", "prefill rate", "disk", "build", "mean_kl", "top1_agreement"}
        assert row["problem"] is None and row["kernel"] in ("dense", "fp32")
        assert 50 < row["measures"]["strided full"] < 5000
    assert re.search(r"^\| int8 \| [\d.]+ \| ", printed, re.MULTILINE)
    built = (output / "int8" / "SHA256SUMS").stat().st_mtime_ns
    assert real.main([*work, *write_texts(tmp_path), "--reuse"]) == 0
    assert (output / "int8" / "SHA256SUMS").stat().st_mtime_ns == built
    assert "build, s" not in capfd.readouterr().out


def test_missing_texts_leave_their_columns_out_and_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_tiny(tmp_path / "tiny")
    monkeypatch.setattr(real, "TEXTS", dict.fromkeys(real.TEXTS, tmp_path / "none"))
    work = [str(checkpoint), "--output", str(tmp_path / "output"), "--precisions", "fp32"]
    assert real.main([*work, "--", *QUICK]) == 0
    captured = capfd.readouterr()
    assert "the columns of lambada are left out; --lambada FILE names" in captured.err
    assert "the columns of wikitext are left out; --wikitext FILE names" in captured.out
    assert "LAMBADA, %" not in captured.out


def test_text_that_is_asked_for_and_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        real.main(["models/demo", "--lambada", "nowhere.jsonl"])
    assert ended.value.code == 2
    assert "argument --lambada: there is no file nowhere.jsonl" in capsys.readouterr().err


def test_precision_that_is_refused_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_tiny(tmp_path / "tiny")
    work = [str(checkpoint), "--output", str(tmp_path / "output"), "--precisions", "fp32", "int8-block"]
    assert real.main([*work, *write_texts(tmp_path), "--", *QUICK, "--block-size", "64"]) == 1
    printed = capfd.readouterr().out
    assert "fp32 was not built: --block-size goes with" in printed
    assert "| int8-block |" in printed


def test_text_that_is_damaged_is_told_and_keeps_what_was_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bad = write_tiny(tmp_path / "tiny"), tmp_path / "bad.jsonl"
    bad.write_text("no JSON\n", encoding="utf-8")
    work = [str(checkpoint), "--output", str(tmp_path / "output"), "--precisions", "fp32", "--lambada", str(bad)]
    assert real.main([*work, "--wikitext", write_texts(tmp_path)[1], "--", *QUICK]) == 1
    printed = capfd.readouterr().out
    assert "fp32 was built, and not measured in full" in printed and "bad.jsonl, line 1" in printed
    assert "decode at 32" in printed


def test_interrupt_leaves_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def take(name: str, *_: object) -> Row:
        if name == "int4":
            raise KeyboardInterrupt
        return Row(name, {"decode": 100.0}, "dense")

    monkeypatch.setattr(real, "take", take)
    assert real.main(["models/demo", "--output", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert "| int8-block | 100 | dense |" in captured.out
    assert "interrupted" in captured.err
    assert len(json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["rows"]) == 2


@pytest.mark.slow
def test_demo_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    limit = ["--limit", "10", "--output", str(tmp_path)]
    assert real.main([str(DEMO), *write_texts(tmp_path), *limit, "--", *QUICK]) == 0
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row["measures"] for row in kept["rows"]}
    assert list(rows) == list(models.PRECISIONS)
    assert rows["fp32"]["mean_kl"] < rows["int8-block"]["mean_kl"] < rows["int8"]["mean_kl"] < rows["int4"]["mean_kl"]
    assert rows["int4"]["disk"] < rows["int8"]["disk"] < rows["fp32"]["disk"]
    assert "Only the first 10 lines of each text were read" in capfd.readouterr().out
