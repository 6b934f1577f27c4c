"""The layout of transformers.js: the names that it expects, and the same graph and weights under them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from export.arguments import parse
from export.folder import layout
from runtime import load
from runtime.graph.data import DATA_FILE
from runtime.graph.gpt2 import GRAPH_FILES
from tests.support.building import FILES, QUICK, contents, error_line, run_here, write_tiny

NAMES = {"fp32": "model.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}
DTYPES = {"fp32": "fp32", "int8": "q8", "int4": "q4"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


def make(checkpoint: Path, output: Path, monkeypatch: pytest.MonkeyPatch, precision: str, *more: str) -> Path:
    rounded = [] if precision == "fp32" else ["--no-calibration"]
    arguments = [checkpoint, "--output", output, "--precision", precision, *rounded, *QUICK, *more]
    assert run_here(monkeypatch, *arguments) == 0
    return output


@pytest.mark.parametrize("precision", NAMES)
def test_the_names_are_transformers_js(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    flat = make(checkpoint, tmp_path / "flat", monkeypatch, precision)
    made = make(checkpoint, tmp_path / "made", monkeypatch, precision, "--layout", "transformers.js")
    name = NAMES[precision]
    others = FILES - {*GRAPH_FILES.values(), DATA_FILE, "golden.json", "genai_config.json"}
    assert contents(made).keys() == others | {f"onnx/{name}", f"onnx/{name}_data"}
    assert (made / "onnx" / f"{name}_data").read_bytes() == (flat / "model.onnx_data").read_bytes()
    one, other = onnx.load(flat / "model.onnx"), onnx.load(made / "onnx" / name)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    settings = config.pop("transformers.js_config")
    assert settings == {"dtype": DTYPES[precision], "use_external_data_format": {name: 1}}
    assert config == json.loads((flat / "config.json").read_text(encoding="utf-8"))


def test_checksums_and_card_are_of_its_files(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(checkpoint, tmp_path / "made", monkeypatch, "int8", "--layout", "transformers.js")
    files = contents(made)
    listed = files.pop("SHA256SUMS").decode().splitlines()
    assert listed == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "`onnx/model_quantized.onnx`" in card
    assert "library_name: transformers.js" in card
    assert 'pipeline("text-generation", "made")' in card
    assert "golden.json" not in card


def test_force_replaces_it_and_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(checkpoint, tmp_path / "made", monkeypatch, "int8", "--layout", "transformers.js")
    make(checkpoint, made, monkeypatch, "int4", "--layout", "transformers.js", "--force")
    assert {path.name for path in (made / "onnx").iterdir()} == {"model_q4.onnx", "model_q4.onnx_data"}
    (made / "onnx" / "mine.txt").write_text("mine", encoding="utf-8")
    capsys.readouterr()
    assert run_here(monkeypatch, checkpoint, "--output", made, "--no-calibration", *QUICK, "--force") == 1
    assert "onnx/mine.txt" in error_line(capsys.readouterr().err)
    assert (made / "onnx" / "mine.txt").is_file()


def test_the_runtime_says_what_it_is(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(checkpoint, tmp_path / "made", monkeypatch, "int8", "--layout", "transformers.js")
    with pytest.raises(FileNotFoundError, match=r"has transformers\.js's layout; build it without --layout"):
        load(made)


def test_only_known_layouts_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["gpt2"]).layout == layout.GPT2_EDGE
    with pytest.raises(SystemExit):
        parse(["gpt2", "--layout", "onnx"])
    assert "transformers.js" in capsys.readouterr().err
