"""Model folders whose bytes have changed: refused before anything opens them, and read in full only once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import load
from runtime.model import integrity
from runtime.model.folder import ModelFolder
from tests.support.command_line import posix_only
from tests.support.damaging import age, flip, link, list_again
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


FILES = [b"3", b'[["config.json", 3]]', *(b'{"config.json": %s}' % entry for entry in (b"5", b"[1]", b"null", b"{}"))]
DAMAGED = [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"folder": 1}']
DAMAGED += [b'{"folder": "X", "files": %s}' % files for files in FILES]
DAMAGED += [b'{"folder": "X", "files": {"config.json": [1, 2, "x", 3, 4, 5, %s]}}' % last for last in (b"null", b"1.5")]


@pytest.mark.parametrize("how", [None, "size"])
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_stamp_is_none(
    folder: Path, cache: Path, digested: list[str], content: bytes, how: integrity.Verify | None
) -> None:
    load(folder).close()
    kept = the_stamp(cache)
    kept.write_bytes(content.replace(b'"X"', json.dumps(str(folder.resolve())).encode()))
    digested.clear()
    load(folder, verify=how).close()
    assert bool(digested) == (how is None)


def the_stamp(cache: Path) -> Path:
    (kept,) = (cache / "verified").iterdir()
    return kept


def open_to_others(stamp: Path) -> None:
    stamp.chmod(0o666)


def folder_open_to_others(stamp: Path) -> None:
    stamp.parent.chmod(0o777)


def linked(stamp: Path) -> None:
    link(stamp, stamp.rename(stamp.parent.parent / "elsewhere"))


def folder_linked(stamp: Path) -> None:
    link(stamp.parent, stamp.parent.rename(stamp.parent.parent / "elsewhere"))


def of_another_user(stamp: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(stamp, 65534, 65534)


def a_pipe(stamp: Path) -> None:
    stamp.unlink()
    os.mkfifo(stamp)


@posix_only
@pytest.mark.parametrize(
    "share", [open_to_others, folder_open_to_others, linked, folder_linked, of_another_user, a_pipe]
)
def test_a_stamp_that_others_may_have_written_is_not_believed(
    folder: Path, cache: Path, digested: list[str], share: Callable[[Path], None]
) -> None:
    load(folder).close()
    share(the_stamp(cache))
    for _ in range(1 if share is not folder_linked else 2):
        digested.clear()
        load(folder).close()
        assert digested


@posix_only
def test_stamps_are_closed_to_others(folder: Path, cache: Path, digested: list[str]) -> None:
    load(folder).close()
    folder_open_to_others(the_stamp(cache))
    load(folder).close()
    assert stat.S_IMODE(the_stamp(cache).stat().st_mode) == 0o600
    assert stat.S_IMODE(the_stamp(cache).parent.stat().st_mode) == 0o700
    digested.clear()
    load(folder).close()
    assert not digested


@posix_only
def test_a_stamp_is_not_written_through_a_link(folder: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    load(folder).close()
    kept = the_stamp(cache)
    kept.unlink()
    link(kept, tmp_path / "precious")
    load(folder).close()
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "precious"


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


def test_a_pinned_folder_is_read_in_full_every_time(folder: Path, digested: list[str]) -> None:
    pin = hashlib.sha256((folder / integrity.CHECKSUMS).read_bytes()).hexdigest()
    for _ in range(2):
        digested.clear()
        load(folder, expect=pin).close()
        assert {"model.onnx", "model.onnx_data", "tokenizer.json"} <= set(digested)


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
