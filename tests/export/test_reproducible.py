"""The same checkpoint and versions give the same files, whatever the hash seed, the clock and the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.building import FILES, contents, run_build, write_tiny

NAMES = ("alder", "birch")


@pytest.mark.parametrize(
    "options",
    [
        "fp32",
        "int8 --kernel dense",
        pytest.param("int8 --kernel block", marks=pytest.mark.slow),
        pytest.param("int4", marks=pytest.mark.slow),
    ],
)
def test_two_builds_differ_by_the_folders_name_alone(options: str, tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path / "tiny")
    for seed, name in enumerate(NAMES):
        (tmp_path / f"place of {name}").mkdir()
        command = [checkpoint, "--precision", *options.split(), "--no-reference", "--output", name]
        environment = {"PYTHONHASHSEED": str(seed), "TZ": f"UTC{seed}"}
        done = run_build(*command, cwd=tmp_path / f"place of {name}", env=environment)
        assert done.returncode == 0, done.stderr
    alder, birch = (contents(tmp_path / f"place of {name}" / name) for name in NAMES)
    assert alder.keys() == (FILES - {"model_int8_cache.onnx"} if options == "fp32" else FILES)
    assert {name for name in alder if alder[name] != birch[name]} == {"README.md", "SHA256SUMS"}
    assert alder["README.md"].replace(b"alder", b"birch") == birch["README.md"]
