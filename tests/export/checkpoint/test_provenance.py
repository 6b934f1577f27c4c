"""Weights that are recognized, and the recorded outputs that come with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from export import build
from export.checkpoint import provenance
from export.checkpoint.provenance import Known
from runtime.diagnostics.check import check_folder
from tests.conftest import shared_data
from tests.support.building import QUICK, write_tiny

SAID = "OpenAI's own gpt2 weights (SHA-256 verified)"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("provenance") / "tiny")


def make_known(monkeypatch: pytest.MonkeyPatch, tiny: Path, outputs: Path) -> None:
    """Enter the tiny checkpoint into the table."""
    content = (tiny / "model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(provenance, "SIZES", {digest: len(content)})
    monkeypatch.setattr(provenance, "KNOWN", {digest: Known(SAID, outputs)})


def write_outputs(path: Path, ids: list[int]) -> Path:
    record = {"prompt_ids": [1, 2, 3], "ids": ids, "repository": "owner/name", "path": "a", "commit": "0"}
    path.write_text(json.dumps({"records": [record], "scored": [record | {"logprob": -9.0}]}), encoding="utf-8")
    return path


def test_a_folder_of_known_weights_says_so_and_carries_the_outputs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_known(monkeypatch, tiny, write_outputs(tmp_path / "outputs.json", [5, 6, 7, 8]))
    target = tmp_path / "model"
    build.main([str(tiny), "--output", str(target), *QUICK])
    assert json.loads((target / "quality.json").read_text(encoding="utf-8"))["weights"] == SAID
    assert SAID in (target / "README.md").read_text(encoding="utf-8")
    golden = json.loads((target / "golden.json").read_text(encoding="utf-8"))
    assert golden["openai"][0]["repository"] == "owner/name"
    result = check_folder(target)
    assert result.passed  # the outputs are of another model, and that is no failure
    assert result.n_openai == 4
    assert result.n_openai_likeliest < 4
    assert f"{result.n_openai_likeliest} of 4 tokens that OpenAI's gpt2" in str(result)
    assert result.openai_difference > 0.1
    assert f"differ by {result.openai_difference:.4f} a token" in str(result)


def test_outputs_of_this_very_model_agree(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.main([str(tiny), "--output", str(tmp_path / "first"), *QUICK])
    golden = json.loads((tmp_path / "first" / "golden.json").read_text(encoding="utf-8"))
    assert "openai" not in golden
    outputs = tmp_path / "outputs.json"
    scored = [record | {"logprob": sum(record["logprobs"])} for record in golden["records"]]
    outputs.write_text(json.dumps({"records": golden["records"], "scored": scored}), encoding="utf-8")
    make_known(monkeypatch, tiny, outputs)
    build.main([str(tiny), "--output", str(tmp_path / "model"), *QUICK])
    result = check_folder(tmp_path / "model")
    assert result.n_openai == result.n_openai_likeliest == result.n_tokens
    assert result.openai_difference < 1e-5


def test_other_weights_are_not_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read"))
    assert provenance.recognize(tiny) is None


def test_other_weights_of_the_same_size_are_others(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_known(monkeypatch, tiny, tmp_path)
    content = bytearray((tiny / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert provenance.recognize(tiny) is not None
    assert provenance.recognize(tmp_path) is None
    assert provenance.recognize(tmp_path / "nowhere") is None


def test_an_unknown_folder_says_nothing(demo_int8_folder: Path) -> None:
    assert "weights" not in json.loads((demo_int8_folder / "quality.json").read_text(encoding="utf-8"))
    assert check_folder(demo_int8_folder).n_openai == 0
    assert "OpenAI" not in str(check_folder(demo_int8_folder))


def test_the_outputs_that_come_with_the_build() -> None:
    [known] = provenance.KNOWN.values()
    assert list(provenance.KNOWN) == list(provenance.SIZES)
    outputs = provenance.recorded_outputs(known)
    assert len(outputs["openai"]) >= 8
    assert all(-9 < record["logprob"] / len(record["ids"]) < -2 for record in outputs["openai_scored"])
    for record in outputs["openai"] + outputs["openai_scored"]:
        assert record["ids"]
        assert record["licence"] in ("MIT", "Apache-2.0")
        assert all(0 <= id_ < 50257 for id_ in record["prompt_ids"] + record["ids"])
        assert record["repository"].count("/") == 1
        assert len(record["commit"]) == 40


def test_the_outputs_are_those_that_were_recorded() -> None:
    """Ids and numbers as in the collection they were taken from."""
    text = (shared_data("reference_outputs") / "gpt2_reference.json").read_text(encoding="utf-8")
    text = json.dumps(json.loads(text))  # a list on one line
    outputs = provenance.recorded_outputs(*provenance.KNOWN.values())
    for record in outputs["openai"] + outputs["openai_scored"]:
        assert str(record["prompt_ids"])[1:-1] in text
        assert record["repository"] in text
    for record in outputs["openai_scored"][:-1]:  # the last is the sum of three
        assert str(record["ids"])[1:-1] in text
        assert f": {record['logprob']}}}" in text
