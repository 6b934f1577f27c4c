"""Folders that change while they are loaded and afterwards: what was checked is what is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import ModelFolderError, Session, generate, load
from runtime.model import folder as folder_module
from runtime.model import integrity, mapped_weights, model
from runtime.model.folder import FolderChangedError, ModelFolder, load_unchanged
from runtime.model.model import Model
from tests.support.damaging import age, flip, list_again
from tests.support.damaging import cache as cache
from tests.support.damaging import folder as folder
from tests.support.damaging import whole as whole

STAGES = ("_find_graph", "read_config", "read_tokenizer", "Session", "check_interface")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the list of mappings is Linux's")
posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows truncates no mapped file")
OFTEN = 4


def digest_of_sums(folder: Path) -> str:
    return hashlib.sha256((folder / integrity.CHECKSUMS).read_bytes()).hexdigest()


def before(monkeypatch: pytest.MonkeyPatch, stage: str, act: Callable[[], object], times: int = 1) -> None:
    """Do something just before a stage of a load begins, the first few times."""
    original = getattr(model, stage)
    left = [times]

    def acting(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(model, stage, acting)


def unpin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems where a folder cannot be opened once for all its files."""
    monkeypatch.setattr(ModelFolder, "_open_folder", lambda _: None)


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """Another model of the same sizes beside the folder: other ids end a text, and weights differ."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "generation_config.json").write_text(json.dumps({"bos_token_id": 5, "eos_token_id": 6}), encoding="utf-8")
    flip(other / "model.onnx_data")
    list_again(other)
    age(other)
    return other


def exchange(one: Path, another: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    another.rename(one)
    aside.rename(another)


@pytest.mark.skipif(os.name == "nt", reason="Windows renames no folder with open files")
@pytest.mark.parametrize("is_pinned", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_that_is_exchanged_during_a_load_is_one_of_the_two(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch, stage: str, is_pinned: bool
) -> None:
    ends = {digest_of_sums(folder): load(folder).config.eos_token_ids, digest_of_sums(other): frozenset([6])}
    if not is_pinned:
        unpin(monkeypatch)
    before(monkeypatch, stage, lambda: exchange(folder, other))
    with load(folder) as opened:
        assert opened.config.eos_token_ids == ends[opened.identity]


@pytest.mark.skipif(os.name == "nt", reason="Windows renames no folder with open files")
def test_an_error_that_an_exchange_causes_starts_the_load_again(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime raises, which compares two answers to what the folder is called."""

    def fail() -> None:
        exchange(folder, other)
        raise ValueError("the path escapes its folder")

    before(monkeypatch, "Session", fail)
    load(folder).close()


@pytest.mark.skipif(os.name == "nt", reason="Windows renames no folder with open files")
def test_a_folder_that_is_exchanged_and_put_back_is_noticed(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a pinned folder: the session would open the other model's weights."""
    unpin(monkeypatch)
    before(monkeypatch, "Session", lambda: exchange(folder, other), OFTEN * 10)
    before(monkeypatch, "check_interface", lambda: exchange(folder, other), OFTEN * 10)
    with pytest.raises(FolderChangedError, match="changes while it is loaded"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.onnx_data", "tokenizer.json"])
def test_a_file_that_is_written_to_during_a_load_is_checked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before(monkeypatch, "check_interface", lambda: flip(folder / name, keep_time=True))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load(folder)


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_file_that_appears_during_a_load_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_pinned: bool
) -> None:
    """It is in no checksum, and the check is over."""
    (folder / "generation_config.json").unlink()
    list_again(folder)
    if not is_pinned:
        unpin(monkeypatch)
    added = folder / "generation_config.json"
    before(monkeypatch, "read_config", lambda: added.write_text('{"eos_token_id": 3}', encoding="utf-8"))
    with pytest.raises(ValueError, match=r"generation_config\.json is not listed"):
        load(folder)


def test_a_file_that_is_put_right_during_a_load_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, "read_config", lambda: (folder / "config.json").write_bytes(b"{"))
    before(monkeypatch, "_find_graph", lambda: None)
    good = (folder / "config.json").read_bytes()
    monkeypatch.setattr(folder_module.time, "sleep", lambda _: (folder / "config.json").write_bytes(good))
    load(folder).close()


def test_a_folder_that_never_rests_is_refused(folder: Path) -> None:
    n_tries = []

    def read(files: ModelFolder) -> None:
        n_tries.append(files.open("README.md"))
        flip(folder / "README.md", keep_time=True)

    with pytest.raises(FolderChangedError, match=r"changes while it is loaded \(README\.md did last\)"):
        load_unchanged(folder, read)
    assert len(n_tries) > 1


def test_errors_name_the_folder_as_the_caller_does(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{")
    (folder / integrity.CHECKSUMS).unlink()
    with pytest.raises(ValueError, match="is not JSON") as error:
        load(folder)
    assert str(error.value).startswith(str(folder / "config.json"))


# after the load -------------------------------------------------------------------------------------------------------


def overwrite(path: Path) -> None:
    """As `cp` and `rsync --inplace` do: the same file, with other content."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))


def truncate(path: Path) -> None:
    os.truncate(path, 0)


@linux_only
@pytest.mark.parametrize("spoil", [overwrite, truncate])
def test_what_happens_to_the_files_changes_no_model_that_is_loaded(folder: Path, spoil: Callable[[Path], None]) -> None:
    with load(folder, cache="fp32") as opened:
        expected = generate("One", model=opened, max_new_tokens=8)
        assert not opened.session.reads_from_file
        for name in ("model.onnx", "model.onnx_data", "tokenizer.json", "config.json"):
            spoil(folder / name)
        assert generate("One", model=opened, max_new_tokens=8) == expected
        assert generate("Two", model=opened, max_new_tokens=8)


@pytest.mark.parametrize("has_pread", [True, False])
@pytest.mark.parametrize("spoil", [overwrite, pytest.param(truncate, marks=posix_only)])
def test_rows_of_the_embedding_are_not_read_from_a_file_that_was_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], has_pread: bool
) -> None:
    """Also in the middle of a text. The graph of the fp32 cache has a copy of the rows."""
    if not has_pread:
        monkeypatch.delattr(os, "pread", raising=False)
    with load(folder) as opened, Session(opened) as session:
        session.append("One")
        id_ = session.sample()
        spoil(folder / "model.onnx_data")
        with pytest.raises(ModelFolderError, match=r"model\.onnx_data was written to after the model was loaded"):
            session.append([id_])


@linux_only
def test_no_weights_stay_mapped(folder: Path) -> None:
    def n_mapped() -> int:
        return Path("/proc/self/maps").read_bytes().count(os.fsencode(folder / "model.onnx_data"))

    with load(folder):
        assert n_mapped() == 0
    with Model(folder, prepack=False):
        assert n_mapped() > 0


@linux_only
def test_mappings_of_others_stay(folder: Path) -> None:
    with Model(folder, prepack=False) as mapped:
        expected = generate("One", model=mapped, max_new_tokens=4)
        n = Path("/proc/self/maps").read_bytes().count(b"model.onnx_data")
        with load(folder) as opened:
            assert generate("One", model=opened, max_new_tokens=4)
        assert Path("/proc/self/maps").read_bytes().count(b"model.onnx_data") == n
        assert generate("One", model=mapped, max_new_tokens=4) == expected


@posix_only
@pytest.mark.parametrize("spoil", [overwrite, truncate])
def test_where_weights_stay_mapped_a_change_is_told_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(mapped_weights, "detach", lambda *_: False)
    with load(folder) as opened:
        generate("One", model=opened, max_new_tokens=2)
        spoil(folder / "model.onnx_data")
        with pytest.raises(ValueError, match=r"model\.onnx_data was written to after the model was loaded"):
            generate("One", model=opened, max_new_tokens=2)


@linux_only
def test_a_model_keeps_few_files_open_and_closes_them(folder: Path) -> None:
    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    n = n_open()
    with load(folder):
        assert n_open() <= n + 2
    assert n_open() == n
    (folder / "config.json").unlink()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            load(folder)
    assert n_open() == n


# identity -------------------------------------------------------------------------------------------------------------


def test_the_identity_is_of_what_was_loaded(folder: Path) -> None:
    expected = digest_of_sums(folder)
    with load(folder) as opened, load(folder, verify="size") as sized, load(folder, verify="off") as unchecked:
        assert opened.identity == sized.identity == unchecked.identity == expected
    with load(folder) as opened:
        (folder / integrity.CHECKSUMS).write_text("something else", encoding="utf-8")
        assert opened.identity == expected


def test_unchecked_weights_have_an_identity_of_their_own(folder: Path) -> None:
    flip(folder / "model.onnx_data")
    with load(folder, verify="size") as sized, load(folder, verify="off") as unchecked:
        assert sized.identity == unchecked.identity != digest_of_sums(folder)


def test_the_identity_of_a_plain_folder_is_of_its_files(folder: Path) -> None:
    (folder / integrity.CHECKSUMS).unlink()
    with load(folder) as first, load(folder) as second:
        identity = first.identity
        assert identity == second.identity
    with load(folder) as opened:
        overwrite(folder / "model.onnx_data")
        with pytest.raises(ValueError, match="was written to after the model was loaded"):
            _ = opened.identity
    with pytest.raises(ValueError, match="closed"):
        _ = opened.identity
