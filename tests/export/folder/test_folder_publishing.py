"""How a model folder takes the place of an earlier one, and what a killed build leaves."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.folder import folder
from runtime import load
from runtime.model import recovery
from tests.support.building import contents, make_link
from tests.support.damaging import build_small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("models"))


def fill(place: Path, text: str) -> Path:
    """What looks like a model folder."""
    place.mkdir(parents=True)
    (place / "model.onnx").write_text(text, encoding="utf-8")
    folder.write_checksums(place)
    return place


def no_atomic_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_swap_atomically", lambda *_: False)


@pytest.mark.parametrize("atomic", [True, False])
def test_publishing_replaces_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        no_atomic_swap(monkeypatch)
    output = fill(tmp_path / "model", "old")
    with folder.workspace(output, force=True) as work:
        new = fill(work / "model", "new")
        expected = contents(new)
        folder.publish(new, output, work)
    assert contents(output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="other systems exchange no names")
def test_two_folders_change_places_in_one_step(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "first", "1"), fill(tmp_path / "second", "2")
    assert folder._swap_atomically(first, second)
    assert [(path / "model.onnx").read_text(encoding="utf-8") for path in (first, second)] == ["2", "1"]
    assert not folder._swap_atomically(first, tmp_path / "missing")


def test_a_second_rename_that_fails_undoes_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_atomic_swap(monkeypatch)
    output = fill(tmp_path / "model", "old")
    before = contents(output)
    with pytest.raises(FileNotFoundError), folder.workspace(output, force=True) as work:
        folder.publish(work / "missing", output, work)
    assert contents(output) == before


def test_a_build_killed_between_two_renames_is_undone_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "model"
    fill(left_by_a_build(output) / "replaced", "old")
    with pytest.raises(FileExistsError, match="--force"), folder.workspace(output):
        pass
    assert (output / "model.onnx").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def left_by_a_build(output: Path) -> Path:
    """The workspace of a killed build."""
    work = output.with_name(f".{output.name}.building")
    work.mkdir()
    (work / "lock").touch()
    return work


def leave_gap(output: Path) -> dict[str, bytes]:
    """What a build leaves that is killed between its two renames."""
    before = contents(output)
    output.rename(left_by_a_build(output) / "replaced")
    return before


def test_load_puts_back_what_a_killed_build_left_aside(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(model, tmp_path / "models" / "one"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2_EDGE_MODEL", raising=False)
    for given in (output, None):  # named, and found
        before = leave_gap(output)
        load(given).close()
        assert contents(output) == before
        shutil.rmtree(output.parent / ".one.building")
    leave_gap(output)
    monkeypatch.setenv("GPT2_EDGE_MODEL", str(output))
    load().close()
    assert contents(output) == before


def test_load_leaves_a_build_that_lives_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Path(shutil.copytree(model, tmp_path / "model"))
    leave_gap(output)
    monkeypatch.setattr(recovery.time, "sleep", lambda _: output.exists() or fill(output, "new"))
    recovery.recover(output)
    assert (output / "model.onnx").read_text(encoding="utf-8") == "new"
    assert (tmp_path / ".model.building" / "replaced").is_dir()


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    left = left_by_a_build(tmp_path / "model")
    fill(left / "model", "half")
    (left / "reference.logprobs").touch()
    with folder.workspace(tmp_path / "model") as work:
        assert [path.name for path in work.iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_leaves_no_folders(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder.workspace(tmp_path / "a" / "b" / "model"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_one_workspace_at_a_time(tmp_path: Path) -> None:
    with folder.workspace(tmp_path / "model") as work:
        (work / "mine").touch()
        with pytest.raises(BlockingIOError, match="another build"), folder.workspace(tmp_path / "model"):
            pass
        assert (work / "mine").exists()
        with folder.workspace(tmp_path / "other"):
            pass
    with folder.workspace(tmp_path / "model"):
        pass


# what others put under the name of a workspace ----------------------------------------------------------------------


def plant_link(work: Path, precious: Path) -> None:
    make_link(work, precious)


def plant_linked_lock(work: Path, precious: Path) -> None:
    work.mkdir()
    make_link(work / "lock", precious / "thesis.txt")


def plant_own_folder(work: Path, precious: Path) -> None:
    """A folder of the user's, moved here by somebody who may write beside it."""
    work.mkdir()
    (work / "thesis.txt").touch()


def plant_others_folder(work: Path, precious: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root makes folders of others")
    work.mkdir()
    (work / "lock").touch()
    os.chown(work, 12345, 12345)


PLANTS = [plant_link, plant_linked_lock, plant_own_folder, plant_others_folder]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_workspace_is_refused_and_left_alone(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    precious, place = tmp_path / "precious", tmp_path / "shared"
    for path in (precious, place):
        path.mkdir()
    (precious / "thesis.txt").write_text("years", encoding="utf-8")
    (precious / "lock").touch()
    plant(place / ".model.building", precious)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="not left by a build of yours"), folder.workspace(place / "model"):
        pass
    assert contents(tmp_path) == before
    assert [path.name for path in place.iterdir()] == [".model.building"]


@pytest.mark.parametrize("plant", PLANTS)
def test_load_puts_nothing_planted_in_place(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    work, precious = tmp_path / ".model.building", tmp_path / "precious"
    fill(precious / "replaced", "planted")
    (precious / "thesis.txt").touch()
    plant(work, precious)
    if not work.is_symlink():
        fill(work / "replaced", "planted")
    recovery.recover(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_links_in_a_workspace_are_removed_and_not_followed(tmp_path: Path) -> None:
    precious, work = fill(tmp_path / "precious", "years"), left_by_a_build(tmp_path / "model")
    before = contents(precious)
    for name in ("replaced", "model", "reference.logprobs"):
        make_link(work / name, precious)
    with folder.workspace(tmp_path / "model"):
        assert [path.name for path in work.iterdir()] == ["lock"]
    assert contents(precious) == before
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.skipif(os.name != "posix", reason="the permissions are POSIX's")
def test_a_workspace_is_closed_to_others(tmp_path: Path) -> None:
    with folder.workspace(tmp_path / "model") as work:
        assert work.stat().st_mode & 0o777 == 0o700
