"""The public functions: their signatures, and which model they take."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import generate, load, score_text, stream
from runtime.model import resolve as default_model
from runtime.model.model import Model

VARIABLE = "GPT2_EDGE_MODEL"


@pytest.fixture(autouse=True)
def no_model_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Neither named by the environment nor installed, nor kept by an earlier test, nor under the working directory."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(default_model, "find_installed_demo", lambda: None)
    monkeypatch.chdir(tmp_path)
    kept: dict[Path, Model] = {}
    monkeypatch.setattr(default_model, "_loaded", kept)
    yield
    for model in kept.values():
        model.close()


def put_model(folder: Path, source: Path | None = None) -> Path:
    """A built model under ./models: a copy of a real one, or the mere look of one."""
    if source:
        return Path(shutil.copytree(source, folder))
    folder.mkdir(parents=True)
    (folder / "model.onnx").touch()
    return folder


# signatures --------------------------------------------------------------------------------------------------------

DESIGNED = {
    "max_new_tokens": 64,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "stop": (),
    "seed": None,
}


@pytest.mark.parametrize("function", [generate, stream])
def test_generate_and_stream_take_a_prompt_and_named_options(function: Any) -> None:
    prompt, model, *options = inspect.signature(function).parameters.values()
    assert (prompt.name, prompt.kind, prompt.default) == ("prompt", prompt.POSITIONAL_OR_KEYWORD, prompt.empty)
    assert (model.name, model.default) == ("model", None)
    assert all(option.kind is option.KEYWORD_ONLY for option in (model, *options))
    assert DESIGNED.items() <= {option.name: option.default for option in options}.items()
    assert all(f"{name}:" in function.__doc__ for name in DESIGNED)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (load, dict.fromkeys(("path", "threads", "verify", "expect", "max_memory", "cache"))),
        (score_text, {"model": None, "stride": None}),
    ],
)
def test_the_other_signatures(function: Any, expected: dict[str, None]) -> None:
    first, *others = inspect.signature(function).parameters.values()
    assert first.kind is first.POSITIONAL_OR_KEYWORD
    assert all(other.kind is other.KEYWORD_ONLY for other in others)
    assert {p.name: p.default for p in (first, *others) if p.default is not p.empty} == expected


def test_every_public_name_is_there_and_documented() -> None:
    assert {"Model", "Score", "generate", "load", "score_text", "stream"} <= set(runtime.__all__)
    assert sorted(runtime.__all__) == list(runtime.__all__)
    assert all(inspect.getdoc(getattr(runtime, name)) for name in runtime.__all__)


# the default model -------------------------------------------------------------------------------------------------


def test_without_any_model_the_cures_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        generate("Once")
    assert all(cure in str(error.value) for cure in (str(tmp_path / "models"), "gpt2-edge build", VARIABLE, "model="))


def test_a_checkpoint_that_is_not_built_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "models" / "demo").mkdir(parents=True)
    (tmp_path / "models" / "demo" / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no model is built"):
        load()


def test_the_only_built_model_is_the_default(tmp_path: Path, demo_fp32_folder: Path, demo_fp32: Model) -> None:
    (tmp_path / "models" / "demo").mkdir(parents=True)
    put_model(tmp_path / "models" / "demo-fp32", demo_fp32_folder)
    assert generate("Once", max_new_tokens=5) == generate("Once", model=demo_fp32, max_new_tokens=5)
    with load() as model:
        assert model.folder.resolve() == (tmp_path / "models" / "demo-fp32").resolve()


def test_of_several_models_one_must_be_named(tmp_path: Path) -> None:
    for name in ("b-int8", "a-int8"):
        put_model(tmp_path / "models" / name)
    with pytest.raises(ValueError) as error:
        stream("Once")
    named = str(error.value)
    assert named.index("a-int8") < named.index("b-int8")
    assert all(cure in named for cure in (VARIABLE, "model=", "--model"))


def test_the_environment_comes_before_the_working_directory(
    tmp_path: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(tmp_path / "models" / "other")
    monkeypatch.setenv(VARIABLE, str(demo_fp32_folder))
    assert load().folder == demo_fp32_folder
    assert generate("Once", max_new_tokens=2)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(FileNotFoundError, match="no model is built"):
        load()


def test_a_wrong_folder_in_the_environment_is_blamed_on_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-model")
    with pytest.raises(FileNotFoundError, match=rf"(?s)no-such-model.*{VARIABLE}|{VARIABLE}.*no-such-model"):
        load()


# what `model` may be -----------------------------------------------------------------------------------------------


def test_a_path_is_loaded_once_and_kept(
    tmp_path: Path, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    class Counted(Model):
        def __init__(self, folder: Path, **rest: Any) -> None:
            loaded.append(folder)
            super().__init__(folder, **rest)

    monkeypatch.setattr(default_model, "Model", Counted)
    monkeypatch.chdir(demo_fp32_folder.parent)
    for path in (demo_fp32_folder, str(demo_fp32_folder), demo_fp32_folder.name, f"{demo_fp32_folder}/../demo-fp32/"):
        generate("Once", model=path, max_new_tokens=1)
    assert len(loaded) == 1


def test_a_kept_model_that_was_closed_is_loaded_again(demo_fp32_folder: Path) -> None:
    before = generate("Once", model=demo_fp32_folder, max_new_tokens=3)
    default_model.resolve(demo_fp32_folder).close()
    assert generate("Once", model=demo_fp32_folder, max_new_tokens=3) == before


def test_load_gives_a_model_of_its_own(demo_fp32_folder: Path) -> None:
    with load(demo_fp32_folder) as one, load(str(demo_fp32_folder)) as other:
        assert one is not other
        assert default_model.resolve(demo_fp32_folder) not in (one, other)


@pytest.mark.parametrize("wrong", [5, b"models/demo-int8", ["models/demo-int8"], 1.5, True, object], ids=repr)
@pytest.mark.parametrize("function", [generate, stream, score_text, load])
def test_what_is_no_model_is_a_type_error(function: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"model is .*path"):
        function(wrong) if function is load else function("Once", model=wrong)


@pytest.mark.parametrize("function", [generate, stream, score_text])
def test_a_missing_path_is_named(function: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        function("Once", model="no-such-model")


@pytest.mark.parametrize("function", [generate, stream, score_text])
def test_a_closed_model_is_a_value_error_at_the_call(demo_fp32_folder: Path, function: Any) -> None:
    with load(demo_fp32_folder) as model:
        assert not model.is_closed
    assert model.is_closed
    assert "closed" in repr(model)
    with pytest.raises(ValueError, match=r"closed.*load"):
        function("Once upon", model=model)


def test_closing_twice_is_closing_once(demo_fp32_folder: Path) -> None:
    model = load(demo_fp32_folder)
    model.close()
    model.close()
    assert model.is_closed


def test_a_text_under_way_survives_the_closing_of_its_model(demo_fp32_folder: Path, demo_fp32: Model) -> None:
    model = load(demo_fp32_folder)
    pieces = stream("Once", model=model, max_new_tokens=20)
    first = next(pieces)
    model.close()
    assert first + "".join(pieces) == generate("Once", model=demo_fp32, max_new_tokens=20)


# prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize("wrong", [None, 5, b"Once", ["Once"]], ids=repr)
def test_a_prompt_is_a_text_or_ids(demo_fp32: Model, function: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"prompt.* is .*; a t.* expected"):
        function(wrong, model=demo_fp32)


@pytest.mark.parametrize("wrong", [None, 5, b"Once", [5.0], [b"Once"], [["Once"]]], ids=repr)
def test_what_is_scored_is_a_text_or_ids(demo_fp32: Model, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"text.* is .*; a t.* expected"):
        score_text(wrong, model=demo_fp32)


@pytest.mark.parametrize("function", [generate, stream, score_text])
def test_a_lone_surrogate_is_refused(demo_fp32: Model, function: Any) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        function("Once \udce9", model=demo_fp32)
