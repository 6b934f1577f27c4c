"""What a build is said to need: the order of what was measured, and refusals before the work."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from export import arguments, build, needs
from export.checkpoint.config import Config
from export.checkpoint.random_weights import SIZES
from export.needs import Needs, estimate
from tests.support.building import QUICK, REPOSITORY, error_line, run_build, run_here, write_tiny

# estimates are of builds that read the whole text
pytestmark = pytest.mark.usefixtures("full_calibration")
GB = 1e9
# GB of anonymous memory at the peak of builds on Linux
MEASURED = {
    "x/gpt2 --no-reference --verify none": 0.511,
    "x/gpt2 --no-calibration --no-reference --verify none": 0.315,
    "x/gpt2 --precision fp32 --no-reference --verify none": 0.639,
    "x/gpt2 --precision int4 --no-calibration --no-reference --verify none": 0.261,
    "x/gpt2 --precision int4 --no-reference --verify none": 0.604,
    "x/gpt2 --no-reference": 0.513,
    "x/gpt2 --precision fp32 --no-reference": 0.828,
    "x/gpt2": 2.345,
    "x/distilgpt2 --no-reference --verify none": 0.472,
    "x/distilgpt2 --no-reference": 0.469,
    "x/distilgpt2 --keep-reference r --verify none": 1.787,
    "random:distilgpt2 --no-reference --verify none": 0.391,
    "random:gpt2 --no-reference --verify none": 0.561,
    "random:gpt2-medium --no-reference --verify none": 1.080,
    "random:gpt2-large --no-reference --verify none": 1.467,
    "random:gpt2-xl --no-reference --verify none": 2.285,
    "random:distilgpt2": 1.872,
    "random:gpt2": 2.395,
    "random:gpt2-medium --keep-reference r --verify none": 5.412,
    "random:gpt2-large --keep-reference r --verify none": 4.415,
    "random:gpt2-xl --keep-reference r --verify none": 7.422,
}


def needed(typed: str, n_text_bytes: int = 9000) -> Needs:
    options = arguments.parse(typed.split())
    size = options.checkpoint.removeprefix("random:").removeprefix("x/")
    return estimate(SIZES[size], options, n_text_bytes)


@pytest.mark.parametrize("typed", MEASURED)
def test_memory_is_what_was_measured_or_a_little_more(typed: str) -> None:
    measured = MEASURED[typed] * GB
    assert measured <= needed(typed).memory <= 1.2 * measured


@pytest.mark.parametrize(
    ("typed", "gigabytes"),
    [
        ("x/gpt2 --no-reference --verify none", 0.137),
        ("x/gpt2 --precision int4 --no-calibration --no-reference --verify none", 0.083),
        ("x/gpt2 --kernel dense --no-reference --verify none", 0.130),
        ("x/gpt2 --precision fp32 --no-reference --verify none", 0.500),
        ("random:gpt2 --no-reference --verify none", 0.636),
        ("x/gpt2 --no-reference", 1.11),
        ("x/gpt2", 1.27),
        ("random:gpt2-medium --keep-reference r --verify none", 3.43),
        ("random:gpt2-large --keep-reference r --verify none", 9.80),
        ("random:gpt2-xl --keep-reference r --verify none", 19.33),
        ("random:gpt2-xl --no-reference --verify none", 7.90),
    ],
)
def test_disk_is_what_was_measured(typed: str, gigabytes: float) -> None:
    assert needed(typed).disk == pytest.approx(gigabytes * GB, rel=0.13)


def test_a_longer_text_takes_more_disk_and_no_more_memory() -> None:
    short, long = (needed("x/gpt2 --no-reference", n) for n in (3000, 6000))
    assert long.disk - short.disk == 1000 * 50257 * 4
    assert long.memory == short.memory
    assert needed("x/gpt2 --no-reference --verify none", 6000) == needed("x/gpt2 --no-reference --verify none", 0)


def test_the_estimate_of_the_model_is_its_size(demo_int8_folder: Path) -> None:
    raw = json.loads((demo_int8_folder / "config.json").read_text(encoding="utf-8"))
    sizes = {key: raw[key] for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    options = arguments.parse(["x/demo"])
    size = (demo_int8_folder / "model.onnx_data").stat().st_size
    assert needs.model_bytes(Config(**sizes), options) == pytest.approx(size, rel=0.03)


CONVERT = """
import sys
from export import build
from tests.trials.process import peak_memory
build.main(sys.argv[1:])
print(peak_memory())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource.getrusage")
def test_a_conversion_never_holds_the_whole_model(tmp_path: Path) -> None:
    typed = ["random:gpt2-medium", *QUICK, "--output", str(tmp_path / "model")]
    done = run_build(*typed, cwd=REPOSITORY, start=("-c", CONVERT))
    assert done.returncode == 0, done.stderr
    weights = 4 * sum(map(math.prod, SIZES["gpt2-medium"].tensor_shapes().values()))
    assert 0.5 * weights < int(done.stdout.splitlines()[-1]) < 0.9 * weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("needs") / "tiny")


def test_the_build_says_it_on_one_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main([str(tiny), "--output", str(tmp_path / "model"), *QUICK])
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert (first[:5], third[:5]) == ("[1/6]", "[2/6]")
    assert second.split("needs about ")[1].split(" GB")[0] == "0.00"
    assert "free" in second


def test_too_little_disk(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "model", *QUICK) == 1
    assert "not enough disk: the build needs about 0.00 GB" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checkpoint", ["tiny", "random:gpt2-xl"])
def test_too_little_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda: 50_000_000)
    monkeypatch.setattr(needs, "free_disk", lambda _: 10**12)
    source = tiny if checkpoint == "tiny" else checkpoint  # the random one is refused before it is written
    assert run_here(monkeypatch, source, "--output", tmp_path / "model", *QUICK) == 1
    assert "0.05 GB is free" in error_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_unknown_memory_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda: None)
    assert Needs(1, 1e15).check(tmp_path, "").endswith("of disk is free")


def test_free_memory_of_this_system(monkeypatch: pytest.MonkeyPatch) -> None:
    free = needs.free_memory()
    assert free is None or 1e6 < free < 1e14
    if sys.platform == "linux":
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: "MemTotal: 3 kB\nMemAvailable:  2048 kB\n")
        assert needs.free_memory() == 2048 * 1024


def test_disk_of_a_place_not_made_yet(tmp_path: Path) -> None:
    assert needs.free_disk(tmp_path / "a" / "b") > 0
