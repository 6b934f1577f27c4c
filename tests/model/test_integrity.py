"""Model folders whose bytes have changed: refused before anything opens them, and read in full only once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from runtime import load
from runtime.model import integrity
from runtime.model.folder import ModelFolder
from tests.support.command_line import posix_only
from tests.support.damaging import age, flip, list_again
from tests.support.damaging import cache as cache
from tests.support.damaging import folder as folder
from tests.support.damaging import whole as whole

DIGEST = "0" * 64


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their digest."""
    names: list[str] = []
    digest = ModelFolder.digest

    def watched(files: ModelFolder, name: str) -> str:
        names.append(name)
        return digest(files, name)

    monkeypatch.setattr(ModelFolder, "digest", watched)
    return names


# levels of verification and stamps ------------------------------------------------------------------------------------


def test_a_folder_is_read_in_full_once(folder: Path, digested: list[str]) -> None:
    load(folder).close()
    assert sorted(digested) == sorted({path.name for path in folder.iterdir()} - {integrity.CHECKSUMS})
    digested.clear()
    load(folder).close()
    load(folder, verify="size").close()
    assert digested == []
    load(folder, verify="full").close()
    assert "model.onnx_data" in digested


@pytest.mark.parametrize("name", ["model.onnx_data", "golden.json", "README.md"])
def test_a_changed_file_is_read_again(folder: Path, name: str) -> None:
    load(folder).close()
    flip(folder / name)
    with pytest.raises(ValueError, match="differs from its checksum") as error:
        load(folder)
    assert str(folder / name) in str(error.value)


@posix_only
def test_a_change_that_keeps_size_and_time_is_found(folder: Path) -> None:
    load(folder).close()
    flip(folder / "README.md", keep_time=True)
    with pytest.raises(ValueError, match=r"README\.md"):
        load(folder)


def test_a_stamp_is_of_a_place_and_of_its_checksums(folder: Path, tmp_path: Path, digested: list[str]) -> None:
    load(folder).close()
    moved = folder.rename(tmp_path / "moved")
    digested.clear()
    load(moved).close()
    assert digested
    flip(moved / "README.md", keep_time=True)
    list_again(moved)
    digested.clear()
    load(moved).close()
    assert digested


def test_files_written_just_now_are_not_stamped(folder: Path, cache: Path) -> None:
    age(folder, seconds=0)
    load(folder).close()
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"folder": 1}', b'{"folder": "X", "files": 3}', b"\xff"])
def test_a_damaged_stamp_is_none(folder: Path, cache: Path, digested: list[str], content: bytes) -> None:
    load(folder).close()
    (kept,) = (cache / "verified").iterdir()
    kept.write_bytes(content.replace(b'"X"', json.dumps(str(folder.resolve())).encode()))
    digested.clear()
    load(folder).close()
    assert digested


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, cache: Path, digested: list[str]) -> None:
    cache.write_text("a file, no folder", encoding="utf-8")
    for _ in range(2):
        digested.clear()
        load(folder).close()
        assert digested


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_each_system_has_its_place_for_caches(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (integrity.ENVIRONMENT, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(integrity.sys, "platform", platform)
    places = {"linux": ".cache", "darwin": "Library/Caches", "win32": "AppData/Local"}
    assert integrity._cache() == tmp_path / places[platform] / "gpt2-edge"


def test_size_compares_with_what_was_recorded(folder: Path) -> None:
    load(folder).close()
    with (folder / "golden.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ValueError, match=r"golden\.json is damaged: it has \d+ bytes, not \d+"):
        load(folder, verify="size")


def test_off_opens_what_differs(folder: Path) -> None:
    flip(folder / "README.md")
    load(folder, verify="off").close()


@pytest.mark.parametrize("wrong", ["", "FULL", "none", True, 1])
def test_another_level_is_refused(folder: Path, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"verify is .*'full', 'size', 'off' or None"):
        load(folder, verify=wrong)  # type: ignore[arg-type]


def test_a_plain_export_has_no_checksums(demo_reference_folder: Path) -> None:
    load(demo_reference_folder).close()
    load(demo_reference_folder, verify="size").close()
    with pytest.raises(ValueError, match=r"no SHA256SUMS to verify.*leave verify out"):
        load(demo_reference_folder, verify="full")


# a pinned folder ------------------------------------------------------------------------------------------------------


def test_a_pinned_folder(folder: Path) -> None:
    pin = hashlib.sha256((folder / integrity.CHECKSUMS).read_bytes()).hexdigest()
    load(folder, expect=pin).close()
    load(folder, expect=pin.upper(), verify="full").close()
    flip(folder / "README.md")
    list_again(folder)
    load(folder).close()
    with pytest.raises(ValueError, match=r"SHA256SUMS has SHA-256 .*another model"):
        load(folder, expect=pin)


def test_a_file_added_to_a_pinned_folder_is_refused(folder: Path) -> None:
    names = ("README.md", "generation_config.json")
    (folder / "generation_config.json").unlink()
    list_again(folder)
    pin = hashlib.sha256((folder / integrity.CHECKSUMS).read_bytes()).hexdigest()
    load(folder, expect=pin).close()
    (folder / names[1]).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"generation_config\.json is not listed"):
        load(folder, expect=pin)


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, 5, b"0" * 64])
def test_a_pin_is_a_digest(folder: Path, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"expect is .*64 hexadecimal digits"):
        load(folder, expect=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["size", "off"])
def test_a_pin_wants_the_checksums_compared(folder: Path, how: integrity.Verify) -> None:
    with pytest.raises(ValueError, match="leave verify out"):
        load(folder, expect=DIGEST, verify=how)


def test_a_pin_of_a_folder_without_checksums(demo_reference_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="SHA256SUMS is missing, which expect pins"):
        load(demo_reference_folder, expect=DIGEST)
