"""The build command: how it is called, what it says, and that it replaces all or nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export import build
from export.checkpoint import hub
from export.checkpoint.checkpoint import open_checkpoint
from export.folder import folder
from export.graph import graph, reference
from export.quantize.precision import Float32
from export.verify import quality
from runtime.model.model import Model
from tests.support.building import (
    FILES,
    QUICK,
    REPOSITORY,
    SCRIPT,
    TINY,
    contents,
    error_line,
    make_link,
    run,
    run_build,
    run_here,
    write_tiny,
)
from tests.support.environment import make_environment, required


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.mark.parametrize("start", [(SCRIPT,), ("-m", "export.build")], ids=["script", "module"])
def test_runs_from_any_directory(tiny: Path, tmp_path: Path, start: tuple[str | Path, ...]) -> None:
    done = run_build(tiny, *QUICK, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, start=start)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "models" / "tiny-int8").iterdir()} == FILES
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_builds_and_verifies_without_torch(tiny: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required("export-light"))
    done = run(python, SCRIPT, tiny, "--no-reference", "--output", tmp_path / "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))["verified"]


def test_says_which_extra_building_needs(tiny: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment", required())
    done = run(python, SCRIPT, tiny, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install -e '.[export-light]'" in error_line(done.stderr)


def test_announces_the_steps_in_order(tiny: Path, tmp_path: Path) -> None:
    done = run_build(tiny, "--no-reference", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("[")]
    names = ["checkpoint", "reference", "calibration", "model", "verification", "publication"]
    assert [line.split(":")[0] for line in steps] == [f"[{n}/6] {name}" for n, name in enumerate(names, 1)]
    assert lines[-1] == f"built {tmp_path / 'out'}"
    for bar in ("text", "layers", "reference", "model"):
        assert f"{bar}: 100%" in done.stderr


@pytest.mark.parametrize("kind", ["int8", "int8 --kernel dense", "int4", "fp32"])
def test_the_model_writes_text(tiny: Path, tmp_path: Path, kind: str) -> None:
    import runtime

    build.main([str(tiny), *QUICK, "--precision", *kind.split(), "--output", str(tmp_path / "model")])
    with runtime.load(tmp_path / "model") as model:
        assert isinstance(runtime.generate("A tiny", model=model, max_new_tokens=4), str)


def test_the_same_command_gives_the_same_files(tiny: Path, tmp_path: Path) -> None:
    build.main([str(tiny), "--no-reference", "--output", str(tmp_path / "model")])
    first = contents(tmp_path / "model")
    build.main([str(tiny), "--no-reference", "--output", str(tmp_path / "model"), "--force"])
    second = contents(tmp_path / "model")
    for name in ("README.md", "SHA256SUMS"):  # the command differs by --force
        first.pop(name), second.pop(name)
    assert first == second


def test_force_replaces_the_model(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    build.main([str(tiny), *QUICK, "--output", str(output)])
    before = contents(output)
    with pytest.raises(FileExistsError, match="--force replaces it"):
        build.main([str(tiny), *QUICK, "--precision", "fp32", "--output", str(output)])
    assert contents(output) == before
    build.main([str(tiny), *QUICK, "--precision", "fp32", "--output", str(output), "--force"])
    assert json.loads((output / "quality.json").read_text(encoding="utf-8"))["precision"] == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_no_obstacle(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    build.main([str(tiny), *QUICK, "--output", str(tmp_path / "model")])
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES


def test_a_link_is_followed(tiny: Path, tmp_path: Path) -> None:
    make_link(tmp_path / "link", tmp_path / "elsewhere" / "model")
    build.main([str(tiny), *QUICK, "--output", str(tmp_path / "link")])
    build.main([str(tiny), *QUICK, "--output", str(tmp_path / "link"), "--force"])
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "elsewhere" / "model").iterdir()} == FILES


def test_products_that_lose_most_get_better_kernels(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = lossy(monkeypatch, [0.6, 0.6, 0.4])
    build.main([str(tiny), "--no-reference", "--output", str(tmp_path / "model")])
    assert not measured
    said = capsys.readouterr().out
    assert said.count("too much is lost: ") == 2
    assert "perplexity +0.60 % (0.5)" in said
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert report["loss_percent"] == 0.4
    assert report["upgraded"]
    for one in report["upgraded"]:
        assert one["error"] < one["usual_error"]
        assert f"| `{one['product']}` | {one['kernel']} |" in (tmp_path / "model" / "README.md").read_text("utf-8")
    kernels = {node.name.removesuffix(".out"): node.op_type for node in nodes(tmp_path / "model")}
    expected = {"fp32": {"MatMul", "FusedMatMul"}}
    for one in report["upgraded"]:
        name = "logits" if one["product"] == "output" else one["product"]
        assert kernels[name] in expected.get(one["kernel"], {"MatMulNBits"})


def nodes(folder: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(folder / "model.onnx", load_external_data=False).graph.node)


def test_a_model_that_loses_too_much_with_every_kernel_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    assert run_here(monkeypatch, tiny, "--no-reference", "--output", output) == 0
    before = contents(output)
    lossy(monkeypatch, [0.6] * 100)
    assert run_here(monkeypatch, tiny, "--no-reference", "--output", output, "--force") == 1
    message = error_line(capsys.readouterr().err)
    assert "loses too much with the most exact kernels" in message
    assert "--max-kl NATS and --max-loss PERCENT allow more" in message
    assert contents(output) == before
    assert run_here(monkeypatch, tiny, "--no-reference", "--output", output, "--force", "--max-loss", "1") == 0
    assert json.loads((output / "quality.json").read_text(encoding="utf-8"))["loss_percent"] == 0.6


def test_without_calibration_all_products_are_upgraded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy(monkeypatch, [0.6, 0.4])
    build.main([str(tiny), "--no-reference", "--no-calibration", "--output", str(tmp_path / "model")])
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert {one["kernel"] for one in report["upgraded"]} == {"block 64"}
    assert len(report["upgraded"]) == 4 * TINY.n_layer + 1
    with Model(tmp_path / "model") as model:
        assert model.kernel == "mixed"


def test_an_int8_cache_that_loses_too_much_is_left_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure: Callable[..., quality.Quality] = quality.Verifier.measure

    def measure_lossy(self: quality.Verifier, model: Path, cache: str | None = None) -> quality.Quality:
        return dataclasses.replace(measure(self, model, cache), loss_percent=0.4 if cache == "fp32" else 0.6)

    monkeypatch.setattr(quality.Verifier, "measure", measure_lossy)
    build.main([str(tiny), "--no-reference", "--output", str(tmp_path / "model")])
    said = capsys.readouterr().out
    assert "the int8 cache loses too much, and is left out: " in said
    assert "too much is lost: " not in said
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES - {"model_int8_cache.onnx"}
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert (report["cache"], report["loss_percent"], report["upgraded"]) == ("fp32", 0.4, [])
    with Model(tmp_path / "model") as model:
        assert model.cache == "fp32"


def lossy(monkeypatch: pytest.MonkeyPatch, percents: list[float]) -> list[float]:
    """Let the verifications measure these losses, one after the other; returns those that are left."""
    measure: Callable[..., quality.Quality] = quality.Verifier.measure

    found: list[float] = []

    def measure_lossy(self: quality.Verifier, model: Path, cache: str | None = None) -> quality.Quality:
        # A second measurement, with the fp32 cache, finds the same.
        if cache is None:
            found.append(percents.pop(0))
        return dataclasses.replace(measure(self, model, cache), loss_percent=found[-1])

    monkeypatch.setattr(quality.Verifier, "measure", measure_lossy)
    return percents


def stand_in_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fused fp32 graph stand in for optimum's, which takes long."""

    def export(checkpoint: Path, target: Path) -> None:
        target.mkdir()
        opened = open_checkpoint(str(checkpoint), target)
        graph.build(opened.config, opened.tensors, Float32(), target)

    monkeypatch.setattr(reference, "export_reference", export)


def test_a_reference_is_kept_without_a_verification_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_export(monkeypatch)
    kept = tmp_path / "reference"
    build.main([str(tiny), "--verify", "none", "--output", str(tmp_path / "model"), "--keep-reference", str(kept)])
    ours = {"README.md", "SHA256SUMS", "genai_config.json", "golden.json", "quality.json"}
    assert {path.name for path in kept.iterdir()} == FILES - ours - {"model_int8_cache.onnx"}


def test_no_reference_is_kept_of_a_refused_model(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_export(monkeypatch)
    lossy(monkeypatch, [3.0] * 100)
    kept = tmp_path / "new" / "reference"
    with pytest.raises(ValueError, match="not published"):
        build.main([str(tiny), "--output", str(tmp_path / "model"), "--keep-reference", str(kept)])
    assert list(tmp_path.iterdir()) == []


def test_keeps_optimums_reference(tiny: Path, tmp_path: Path) -> None:
    import runtime

    kept = tmp_path / "new" / "reference"
    build.main([str(tiny), "--output", str(tmp_path / "model"), "--keep-reference", str(kept)])
    with runtime.load(kept) as model:
        assert not model.is_fused
    assert folder.CHECKSUMS not in {path.name for path in kept.iterdir()}
    report = json.loads((tmp_path / "model" / "quality.json").read_text(encoding="utf-8"))
    assert report["reference"] == "optimum's fp32 export"
    assert abs(report["loss_percent"]) < 0.1
    assert not [path for path in tmp_path.rglob(".*") if "building" in path.name]


def test_passes_the_revision_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repo_id: str, revision: str | None = None, **_: bool) -> Path:
        asked.append((repo_id, revision))
        return tiny

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.chdir(tmp_path)
    build.main(["owner/tiny", "--revision", "v2", *QUICK])
    assert asked == [("owner/tiny", "v2")]
    assert (tmp_path / "models" / "tiny-int8").is_dir()
