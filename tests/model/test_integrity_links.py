"""Model folders as other tools lay them out: the hub's cache, and git on Windows."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from runtime import generate, load
from runtime.diagnostics.check import check_folder
from runtime.model import integrity
from tests.support.building import make_link
from tests.support.damaging import cache as cache
from tests.support.damaging import flip
from tests.support.damaging import folder as folder
from tests.support.damaging import whole as whole


def into_cache(folder: Path, root: Path) -> Path:
    """As huggingface_hub keeps a repository: files by their digest, and a snapshot of links to them."""
    snapshot, blobs = root / "models--owner--name" / "snapshots" / "abc", root / "models--owner--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        make_link(snapshot / path.name, Path("..") / ".." / "blobs" / blob.name)
    return snapshot


@pytest.mark.parametrize("how", [None, "full", "size"])
def test_a_snapshot_of_the_hubs_cache_loads(folder: Path, tmp_path: Path, how: integrity.Verify | None) -> None:
    snapshot = into_cache(folder, tmp_path)
    with load(snapshot, verify=how) as model, load(folder) as plain:
        assert generate("One", model=model, max_new_tokens=4) == generate("One", model=plain, max_new_tokens=4)
    assert check_folder(snapshot).passed


def test_a_blob_that_is_not_what_the_checksums_list_is_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = into_cache(folder, tmp_path)
    flip((snapshot / "golden.json").resolve())
    with pytest.raises(ValueError, match=r"golden\.json is damaged"):
        load(snapshot)


def test_without_checksums_links_out_of_a_snapshot_are_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = into_cache(folder, tmp_path)
    (snapshot / integrity.CHECKSUMS).unlink()
    with pytest.raises(ValueError, match="outside the model folder"):
        load(snapshot)


@pytest.mark.parametrize("place", ["elsewhere", "blobs/deeper", "other/blobs"])
def test_a_link_to_any_other_place_is_refused(folder: Path, tmp_path: Path, place: str) -> None:
    snapshot = into_cache(folder, tmp_path)
    target = tmp_path / "models--owner--name" / place / "config.json"
    target.parent.mkdir(parents=True)
    shutil.copyfile(folder / "config.json", target)
    (snapshot / "config.json").unlink()
    make_link(snapshot / "config.json", target)
    with pytest.raises(ValueError, match="outside the model folder"):
        load(snapshot)


def test_blobs_that_are_a_link_themselves_are_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = into_cache(folder, tmp_path)
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.rename(tmp_path / "secret")
    make_link(blobs, tmp_path / "secret")
    with pytest.raises(ValueError, match="outside the model folder"):
        load(snapshot)


@pytest.mark.parametrize("names", [["SHA256SUMS", "config.json"], ["config.json"], ["README.md"]], ids=str)
def test_changed_line_ends_are_named(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match=rf"{names[0]} has other line ends .*git -c core.autocrlf=false clone"):
        load(folder)


def test_a_template_that_was_added_later_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not listed"):
        load(folder)
