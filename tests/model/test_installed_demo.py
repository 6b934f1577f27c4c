"""The installed demo answers where no model is named and none is built, and nothing but an installation counts."""

from __future__ import annotations

import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime
from runtime.cli import main
from runtime.model import installed_demo, resolve
from runtime.model.installed_demo import DISTRIBUTION, find_installed_demo
from runtime.model.model import Model

NOTICE = f"gpt2-edge: no model is named, so the demo answers: {DISTRIBUTION} 0.9.7"


@pytest.fixture(autouse=True)
def nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, no variable, no installed demo, nothing said yet, no model kept."""
    kept: dict[Path, Model] = {}
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv(resolve.ENVIRONMENT, raising=False)
    monkeypatch.setattr(resolve, "_loaded", kept)
    monkeypatch.setattr(installed_demo, "_said", set())
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path / "site-packages")])
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "user"))
    yield
    for model in kept.values():
        model.close()


def put_distribution(folder: Path, model: Path | None, version: str = "0.9.7") -> Path:
    """What pip leaves in site-packages; returns where the model is."""
    information = folder / f"gpt2_edge_demo-{version}.dist-info"
    information.mkdir(parents=True)
    text = f"Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: {version}\n"
    (information / "METADATA").write_text(text, encoding="utf-8")
    target = folder / "gpt2_edge_demo" / "demo-int8"
    if model:
        shutil.copytree(model, target)
    return target


@pytest.fixture
def demo(tmp_path: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed demo: the folder of its model."""
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    return put_distribution(tmp_path / "site-packages", demo_fp32_folder)


def test_it_answers_and_says_so_once(demo: Path, demo_fp32: Model, capsys: pytest.CaptureFixture[str]) -> None:
    text = runtime.generate("Once upon a time", max_new_tokens=8)
    assert runtime.generate("Once upon a time", max_new_tokens=8) == text
    assert text == runtime.generate("Once upon a time", max_new_tokens=8, model=demo_fp32)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(NOTICE)
    assert error.count("\n") == 1
    with runtime.load() as model:
        assert model.folder == demo
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("demo")
def test_the_command_writes_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Once upon a time", "--max-new-tokens", "4"]) == 0
    out, error = capsys.readouterr()
    assert error.startswith(NOTICE)
    assert out == f"{runtime.generate('Once upon a time', max_new_tokens=4)}\n"


def test_named_and_built_models_come_first(
    demo: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = Path(shutil.copytree(demo_fp32_folder, Path("models", "mine")))
    assert resolve.find() == built
    monkeypatch.setenv(resolve.ENVIRONMENT, str(demo_fp32_folder))
    assert resolve.find() == demo_fp32_folder
    with runtime.load(built) as model:
        assert model.folder == built
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("demo")
def test_it_stands_in_for_no_model_that_is_named_or_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(runtime.NoModelError, match="nowhere"):
        runtime.load("nowhere")
    for name in ("a-int8", "b-int8"):
        Path("models", name).mkdir(parents=True)
        Path("models", name, "model.onnx").touch()
    with pytest.raises(ValueError, match="several models are built"):
        runtime.load()
    monkeypatch.setenv(resolve.ENVIRONMENT, "nowhere")
    with pytest.raises(runtime.NoModelError, match="nowhere"):
        runtime.load()


@pytest.mark.parametrize("entry", ["", ".", "absolute"])
def test_one_in_the_working_directory_is_not_installed(
    entry: str, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_distribution(Path.cwd(), demo_fp32_folder)
    monkeypatch.setattr(sys, "path", [str(Path.cwd()) if entry == "absolute" else entry, *sys.path])
    assert find_installed_demo() is None
    with pytest.raises(runtime.NoModelError, match=f"pip install {DISTRIBUTION}"):
        runtime.load()


def test_site_packages_that_are_not_imported_from_do_not_count(tmp_path: Path, demo_fp32_folder: Path) -> None:
    """As with `python -S` or `python -s`."""
    put_distribution(tmp_path / "site-packages", demo_fp32_folder)
    assert find_installed_demo() is None


def test_a_link_to_site_packages_is_followed(
    tmp_path: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_distribution(tmp_path / "really", demo_fp32_folder)
    try:
        (tmp_path / "site-packages").symlink_to(tmp_path / "really", target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    found = find_installed_demo()
    assert found is not None
    assert found.samefile(tmp_path / "really" / "gpt2_edge_demo" / "demo-int8")


def test_an_installation_without_its_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    put_distribution(tmp_path / "site-packages", None)
    with pytest.raises(runtime.NoModelError, match="--force-reinstall"):
        runtime.load()


def test_without_standard_error_it_answers_in_silence(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert find_installed_demo() == demo
