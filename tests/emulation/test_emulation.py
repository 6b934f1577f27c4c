"""The demo on emulated processors: `check` passes on each, and `load` notices those without the block kernels."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from export import build
from export.folder.folder import CHECKSUMS, write_checksums
from export.json_file import write_json
from runtime._json import read_json
from tests.conftest import DEMO
from tests.emulation import processors
from tests.emulation.__main__ import check_table, measure, prepare, time_table
from tests.emulation.processors import NATIVE, PROCESSORS, find_emulator
from tests.support.building import QUICK

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the dense kernel may not suit this machine
emulated = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the emulator is Linux's on x86-64"
)
DOT_PRODUCT = {"Haswell": ["AVX2"], "IvyBridge": [], "Nehalem": [], "cortex-a72": []}
DOT_PRODUCT |= {"neoverse-n1": ["ASIMDDP"], "cortex-a76": ["ASIMDDP"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """int8 builds of the demo by kernel, each with one recorded output: emulated steps are slow."""
    place = tmp_path_factory.mktemp("emulation")
    return {kernel: shortened(place / kernel, kernel) for kernel in ("block", "dense")}


def shortened(folder: Path, kernel: str) -> Path:
    build.main([str(DEMO), *QUICK, "--kernel", kernel, "--output", str(folder)])
    golden = read_json(folder / "golden.json")
    write_json(folder / "golden.json", golden | {"records": golden["records"][:1]})
    (folder / CHECKSUMS).unlink()
    write_checksums(folder)
    return folder


def measured_on(name: str, folder: Path) -> dict[str, Any]:
    """Skips the test where the emulator or arm64's packages cannot be had, but in continuous integration."""
    try:
        prepare([PROCESSORS[name]])
    except (OSError, RuntimeError) as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    return measure(PROCESSORS[name], folder)


@emulated
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kernel", "is_warned"),
    [
        ("Haswell", "block", False),
        ("Nehalem", "block", True),
        ("Nehalem", "dense", False),
        ("neoverse-n1", "block", False),
        ("neoverse-n1", "dense", False),
        ("cortex-a76", "block", False),
        ("cortex-a72", "block", True),
        ("cortex-a72", "dense", False),
    ],
)
def test_the_demo_on_another_processor(folders: dict[str, Path], name: str, kernel: str, is_warned: bool) -> None:
    found = measured_on(name, folders[kernel])
    assert found["passed"], found
    assert found["n_tokens"] == len(found["logprobs"]) == 24
    assert found["n_likeliest"] >= 22  # near ties
    assert found["largest_difference"] < found["tolerance"] / 2
    assert ["--kernel dense" in line for line in found["warnings"]] == [True] * is_warned
    assert found["instructions"] == DOT_PRODUCT[name]  # what is emulated is what /proc/cpuinfo is made to tell


@pytest.mark.slow
def test_the_demo_on_this_processor(folders: dict[str, Path]) -> None:
    found = measure(NATIVE, folders["dense"])
    assert (found["passed"], found["n_exact"], found["n_likeliest"]) == (True, 24, 24)
    assert found["step_ms"] > 0


def test_without_an_emulator_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.shutil, "which", lambda _: None)
    monkeypatch.setattr(processors.sys, "platform", "linux")
    monkeypatch.setattr(processors.platform, "machine", lambda: "x86_64")
    with pytest.raises(FileNotFoundError, match="apt-get install qemu-user-static"):
        find_emulator("aarch64")
    monkeypatch.setattr(processors.sys, "platform", "darwin")
    with pytest.raises(FileNotFoundError, match="on Linux on x86-64, not darwin"):
        find_emulator("aarch64")


def test_the_tables() -> None:
    base = {"n_tokens": 3, "n_likeliest": 3, "largest_difference": 0.0, "tolerance": 0.25, "passed": True}
    base |= {"instructions": ["AVX2", "AVX512VNNI"]}
    results: list[dict[str, Any]] = [
        base | {"processor": name, "folder": folder, "step_ms": ms, "warnings": [], "logprobs": [-1.0, -2.0, shift]}
        for name, times, shift in [("native", (3, 4, 2, 8), -3.0), ("Nehalem", (88, 8, 72, 24), -2.9)]
        for folder, ms in zip(("int8 block", "int8 dense", "int4", "fp32"), times, strict=True)
    ]
    results[4] |= {"warnings": ["slow"], "largest_difference": 0.3, "n_likeliest": 2, "passed": False}
    native = f"native ({NATIVE.machine}, AVX2, AVX512VNNI)"
    rows = check_table(results).splitlines()
    assert rows[2] == f"| {native} | int8 block | 3 of 3 | 0.000000 | 0.25 | ok | no |"
    warned = "2 of 3 | 0.300000 | 0.25 | **NOT OK** | another kernel suits"
    assert rows[6] == f"| Nehalem (x86-64, SSE only) | int8 block | {warned} |"
    assert "int8 block 0.100000, int8 dense 0.100000" in rows[-1]
    assert time_table(results).splitlines()[2:] == [
        f"| {native} | 0.8 | 1.0 | 0.5 | 2.0 |",
        "| Nehalem (x86-64, SSE only) | 11.0 | 1.0 | 9.0 | 3.0 |",
    ]
