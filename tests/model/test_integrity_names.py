"""Model folders whose checksums, links or files are not what they should be: refused before anything opens them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import load
from runtime.model import integrity
from tests.support.damaging import cache as cache
from tests.support.damaging import folder as folder
from tests.support.damaging import link
from tests.support.damaging import whole as whole

DIGEST = "0" * 64


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "C:/x", "C:x", "..\\x", "\\\\host\\x", "\\x", "a\0b", ".."]
)
def test_checksums_of_files_elsewhere_are_refused(folder: Path, name: str) -> None:
    with (folder / integrity.CHECKSUMS).open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{DIGEST}  {name}\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS, line \d+ is damaged"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["", "\n", "no digest\n", f"{DIGEST} one-space\n", f"{DIGEST}  twice\n{DIGEST}  twice\n", f"{DIGEST}  end"]
)
def test_checksums_that_are_none(folder: Path, text: str) -> None:
    (folder / integrity.CHECKSUMS).write_text(text, encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS.* is damaged"):
        load(folder)


def test_checksums_that_are_no_text(folder: Path) -> None:
    (folder / integrity.CHECKSUMS).write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS is damaged"):
        load(folder)


def test_a_line_that_is_left_out_is_missed(folder: Path) -> None:
    path = folder / integrity.CHECKSUMS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for index, line in enumerate(lines):
        path.write_text("".join(lines[:index] + lines[index + 1 :]), encoding="utf-8", newline="\n")
        with pytest.raises(ValueError, match="is not listed in SHA256SUMS") as error:
            load(folder)
        assert line.split()[1] in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "model.onnx_data", "SHA256SUMS", "README.md"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    outside = (folder / name).rename(tmp_path / "outside")
    link(folder / name, outside)
    with pytest.raises(ValueError, match=r"is a link to .*outside the model folder") as error:
        load(folder)
    assert str(folder / name) in str(error.value)


def test_a_link_within_the_folder_and_to_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").rename(folder / "card")
    link(folder / "README.md", folder / "card")
    link(tmp_path / "linked", folder)
    load(tmp_path / "linked").close()


@pytest.mark.skipif(os.name != "posix", reason="named pipes in folders are POSIX's")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.onnx", "model.onnx_data", "SHA256SUMS"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="is not a file"):
        load(folder)


def test_a_folder_is_no_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a file"):
        load(folder)
