"""Whatever goes wrong is said in one line, with what to do; nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants
from safetensors import SafetensorError

from export import compatibility
from export.graph import graph, reference
from tests.support.building import QUICK, contents, error_line, run_here, write_tiny

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("./missing", "no folder './missing' here, and it is no hub id"),
        ("/missing/folder", "no folder '/missing/folder' here, and it is no hub id"),
        ("missing/", "it is no hub id"),
        ("one/two/three", "it is no hub id"),
        ("-", "it is no hub id"),
        ("owner/name", "no folder 'owner/name' here, and the hub, which may have it, is not reached"),
        ("file", "file is a file; give the folder that holds the checkpoint"),
        ("empty", "config.json is missing"),
        ("empty --verify quality --eval-text missing", "no text at missing; --eval-text names a file"),
        ("random:gpt2 --tokenizer missing", "missing/tokenizer.json is missing; --tokenizer FOLDER names a folder"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert run_here(monkeypatch, *QUICK, *typed.split(), "--output", "new/model") == 1
    assert message in error_line(capsys.readouterr().err).replace(os.sep, "/")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def file_there(output: Path) -> None:
    output.write_text("mine", encoding="utf-8")


def folder_there(output: Path) -> None:
    output.mkdir()
    file_there(output / "notes.txt")


def other_checksums_there(output: Path) -> None:
    folder_there(output)
    (output / "SHA256SUMS").write_text("0  notes.txt\n", encoding="utf-8")


def parent_is_a_file(output: Path) -> None:
    file_there(output.parent)


def notes_in_a_model(output: Path) -> None:
    output.mkdir()
    (output / "SHA256SUMS").write_text("0  model.onnx\n", encoding="utf-8")
    file_there(output / "notes.txt")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (file_there, "is not a model folder: move it away, or name another place"),
        (folder_there, "is not a model folder: move it away, or name another place"),
        (other_checksums_there, "is not a model folder: move it away, or name another place"),
        (parent_is_a_file, "models is a file: name another place"),
        (notes_in_a_model, "holds more than a build wrote, which --force would delete: notes.txt"),
        (lambda output: output.mkdir(), "itself cannot be replaced while it is in use"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_place_that_is_taken(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: Change,
    message: str,
) -> None:
    output = tmp_path / "models" / "mine"
    if prepare is not parent_is_a_file:
        output.parent.mkdir()
    prepare(output)
    if "in use" in message:
        monkeypatch.chdir(output)
    before = contents(tmp_path)
    assert run_here(monkeypatch, tiny, *QUICK, "--output", output, "--force") == 1
    assert message in error_line(capsys.readouterr().err)
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(".*"))


def test_a_reference_that_is_there(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reference").mkdir()
    places: list[str | Path] = ["--output", tmp_path / "model", "--keep-reference", tmp_path / "reference", "--force"]
    assert run_here(monkeypatch, tiny, *places) == 1
    assert "--keep-reference names a new folder" in error_line(capsys.readouterr().err)


@pytest.mark.skipif(os.name == "nt", reason="the permissions are POSIX's")
def test_a_place_without_permission(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shutil.copytree(tiny, place / "tiny")
        place.chmod(0o555)
        with as_nobody():
            assert run_here(monkeypatch, place / "tiny", *QUICK, "--output", place / "model") == 1
        place.chmod(0o755)
        assert "no permission" in (line := error_line(capsys.readouterr().err))
        assert "name another --output" in line
        assert [path.name for path in place.iterdir()] == ["tiny"]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; another user stays who it is."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "f"), "the disk is full .*free some space, or name an --out"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full .*--output on another"),
        (OSError(errno.EFBIG, "File too large", "f"), "does not take a file so big .*--output on another disk"),
        (OSError(errno.EACCES, "Permission denied", "f"), "no permission .*'f'.*name another --output"),
        (OSError(errno.EROFS, "Read-only file system", "f"), "no permission .*'f'.*name another --output"),
        (ValueError("two\nlines"), "^error: two lines$"),
        (MemoryError(), "^error: not enough memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_goes_wrong_at_work(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(graph, "build", mock.Mock(side_effect=error))
    assert run_here(monkeypatch, tiny, *QUICK, "--output", tmp_path / "model") == 1
    assert re.search(message, error_line(capsys.readouterr().err))
    assert list(tmp_path.iterdir()) == []


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize("missing", ["torch", "transformers", "optimum", "optimum.exporters", "optimum.exporters.onnx"])
def test_a_missing_optimum_is_said_before_any_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "optimum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "model") == 1
    shown = capsys.readouterr()
    assert "pip install -e '.[export]', or build with --no-reference" in error_line(shown.err)
    assert shown.out == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("cannot trace\nshapes differ"),
            r"could not export .*\(RuntimeError: cannot trace shapes differ\).*--no-reference",
        ),
        (
            caused(ImportError("no module\nof it"), by=ValueError("version 2 is\nrequired")),
            r"\(ImportError: no module of it; caused by ValueError: version 2 is required\).*--no-reference",
        ),
        (ImportError("cannot import name"), r"could not export .*\(ImportError: cannot import.*--no-reference"),
        (OSError("not a model folder"), "could not export .*not a model folder.*--no-reference"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_inside_optimum(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(reference, "_export", mock.Mock(side_effect=error))
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "model") == 1
    assert re.search(message, error_line(capsys.readouterr().err))
    assert list(tmp_path.iterdir()) == []


# versions that do not go together ----------------------------------------------------------------------------------


def installed_as(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """As if these versions were installed."""
    true = compatibility.version
    monkeypatch.setattr(compatibility, "version", lambda name: versions.get(name.replace("-", "_")) or true(name))


def test_a_newer_hub_library_is_named_where_it_is_needed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed_as(monkeypatch, huggingface_hub="2.4.0")
    assert run_here(monkeypatch, "owner/name", *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert "downloads need huggingface_hub 0.x, and 2.4.0 is installed: pip install -e '.[export-light]'" in line
    assert run_here(monkeypatch, tiny, *QUICK, "--output", tmp_path / "model") == 0


def test_what_the_reference_requires_is_checked_first(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed_as(monkeypatch, huggingface_hub="2.4.0")
    assert run_here(monkeypatch, tiny, "--output", tmp_path / "model") == 1
    shown = capsys.readouterr()
    line = error_line(shown.err)
    assert re.search(r"transformers [\d.]+ needs huggingface-hub\S+, and 2\.4\.0 is installed: pip install -e", line)
    assert "or build with --no-reference" in line
    assert shown.out == ""


def test_what_is_installed_here_goes_together() -> None:
    compatibility.check_hub()
    compatibility.check_reference()
