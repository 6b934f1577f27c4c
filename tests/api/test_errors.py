"""Errors that a caller can tell apart: where each is raised, and what it says beyond its message."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

import runtime
from runtime import errors
from runtime.model.model import Model

BUILT_IN = {
    "ContextLengthError": ValueError,
    "MemoryBudgetError": MemoryError,
    "ModelFolderError": ValueError,
    "NoModelError": FileNotFoundError,
    "NoTokenError": ValueError,
    "NoTokenizerError": ValueError,
    "OptionError": ValueError,
    "PrefixFileError": ValueError,
}
LONG = "The old king had three sons. " * 200


def test_every_error_is_public_and_a_built_in_one() -> None:
    own = {name: one for name, one in vars(errors).items() if inspect.isclass(one)}
    assert own.keys() == BUILT_IN.keys() <= {*runtime.__all__}
    for name, one in own.items():
        assert getattr(runtime, name) is one
        assert one.__bases__ == (BUILT_IN[name],)
        assert inspect.getdoc(one)


@pytest.mark.parametrize(
    "error",
    [
        errors.ContextLengthError("too long", 700, 64, 512),
        errors.MemoryBudgetError("too much", 9, 8, 7),
        errors.NoTokenError("none", 3, 1),
        errors.OptionError("wrong", "top_k", "temperature"),
        errors.ModelFolderError("damaged"),
    ],
    ids=repr,
)
def test_errors_survive_pickling(error: Exception) -> None:
    """A worker of a Dask cluster sends them to its client."""
    error.add_note("among texts 0 to 63")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))


# texts that are too long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [runtime.generate, runtime.stream, runtime.stream_many, runtime.complete])
def test_a_prompt_that_is_too_long_comes_with_the_numbers(demo_fp32: Model, call: Any) -> None:
    n_positions = demo_fp32.config.n_positions
    n_prompt = len(demo_fp32.tokenizer.encode(LONG).ids)
    with pytest.raises(runtime.ContextLengthError) as raised:
        call(LONG, model=demo_fp32, max_new_tokens=9)
    error = raised.value
    assert (error.n_prompt, error.max_new_tokens, error.n_positions) == (n_prompt, 9, n_positions)


def test_the_numbers_say_what_fits(demo_fp32: Model) -> None:
    prompt = "The old king had three sons. " * 60
    with pytest.raises(runtime.ContextLengthError) as raised:
        runtime.generate(prompt, model=demo_fp32, max_new_tokens=500)
    room = raised.value.n_positions - raised.value.n_prompt
    assert runtime.complete(prompt, model=demo_fp32, max_new_tokens=room, suppress_ids=[0])[0].n_tokens == room


def test_a_text_that_is_refused_by_its_length_has_the_least_it_can_have(demo_fp32: Model) -> None:
    with pytest.raises(runtime.ContextLengthError, match="truncate_left") as raised:
        runtime.generate("a" * 200_000, model=demo_fp32)
    assert demo_fp32.config.n_positions < raised.value.n_prompt <= 200_000
    assert (raised.value.max_new_tokens, raised.value.n_positions) == (64, demo_fp32.config.n_positions)


def test_what_is_scored_prefixed_or_asked_for_may_be_too_long(demo_fp32: Model) -> None:
    n_positions = demo_fp32.config.n_positions
    n = len(demo_fp32.tokenizer.encode(LONG.strip()).ids)
    calls: list[tuple[Any, int]] = [
        (lambda: runtime.score(" So", context=LONG, model=demo_fp32), n + 2),
        (lambda: runtime.score(LONG.strip(), model=demo_fp32), n + 1),
        (lambda: runtime.prefix(LONG.strip(), model=demo_fp32), n),
        (lambda: runtime.perform("summarize", LONG, model=demo_fp32), 0),
        (lambda: runtime.perform("choose", LONG, model=demo_fp32, options=["a", "b"]), 0),
        (lambda: runtime.perform("last_word", LONG, model=demo_fp32), 0),
    ]
    for call, n_prompt in calls:
        with pytest.raises(runtime.ContextLengthError) as raised:
            call()
        assert raised.value.n_prompt == n_prompt if n_prompt else raised.value.n_prompt > n_positions
        assert raised.value.n_positions == n_positions
        assert raised.value.max_new_tokens >= 0


# options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"top_p": 2}, {"top_p"}),
        ({"top_k": 5}, {"top_k", "temperature"}),
        ({"top_k": 5, "min_p": 0.5}, {"top_k", "min_p", "temperature"}),
        ({"overflow": "wrap"}, {"overflow"}),
        ({"seed": 3}, {"seed", "temperature"}),
        ({"regex": "a", "choices": ["a"]}, {"regex", "choices"}),
        ({"regex": "a", "stop": "b"}, {"regex", "stop"}),
        ({"pinned_tokens": 3}, {"pinned_tokens", "overflow"}),
        ({"pinned_tokens": 300, "overflow": "slide"}, {"pinned_tokens"}),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, {"max_new_tokens", "min_new_tokens"}),
        ({"seed": [1, 2], "temperature": 1.0}, {"seed"}),
        ({"num_beams": 2, "lookup": 3}, {"lookup"}),
        ({"num_beams": 2, "token_healing": True}, {"token_healing"}),
    ],
    ids=repr,
)
def test_an_option_error_names_the_options(demo_fp32: Model, given: dict[str, Any], names: set[str]) -> None:
    with pytest.raises(runtime.OptionError) as raised:
        runtime.complete("Once", model=demo_fp32, **given)
    assert {*raised.value.options} == names
    assert all(name in str(raised.value) for name in names)


def test_structured_output_that_no_text_has_is_an_option_error(demo_fp32: Model) -> None:
    pytest.importorskip("llguidance")
    for given in ({"regex": "("}, {"choices": ["a long text that needs many tokens"], "max_new_tokens": 1}):
        with pytest.raises(runtime.OptionError) as raised:
            runtime.generate("Once", model=demo_fp32, **given)  # type: ignore[arg-type]
        assert raised.value.options == (next(iter(given)),)


def test_no_token_to_choose(demo_fp32: Model) -> None:
    pieces = runtime.stream_many(["Once", "The"], model=demo_fp32, suppress_ids=range(demo_fp32.config.vocab_size))
    with pytest.raises(runtime.NoTokenError) as raised:
        list(pieces)
    assert (raised.value.n_new, raised.value.prompt_index) == (0, 0)


# models, memory and files ------------------------------------------------------------------------------------------


def test_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2_EDGE_MODEL", raising=False)
    monkeypatch.setattr("runtime.model.resolve.find_installed_demo", lambda: None)
    for call in (runtime.load, lambda: runtime.generate("Once"), lambda: runtime.load("nowhere")):
        with pytest.raises(runtime.NoModelError):
            call()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "bert"}'),
        ("tokenizer.json", b"{}"),
        ("model.onnx", b"no graph"),
    ],
)
@pytest.mark.parametrize("verify", ["full", "off"])
def test_a_folder_that_is_damaged(
    demo_fp32_folder: Path, tmp_path: Path, name: str, content: bytes, verify: Any
) -> None:
    folder = shutil.copytree(demo_fp32_folder, tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(runtime.ModelFolderError, match=name.replace(".", r"\.")):
        runtime.load(folder, verify=verify)


def test_a_folder_of_another_model_is_not_damaged_arguments(demo_fp32_folder: Path) -> None:
    with pytest.raises(runtime.ModelFolderError, match="another model"):
        runtime.load(demo_fp32_folder, expect="0" * 64)
    with pytest.raises(ValueError, match="verify is 'some'") as raised:
        runtime.load(demo_fp32_folder, verify="some")  # type: ignore[arg-type]
    assert type(raised.value) is ValueError


def test_a_budget_says_what_it_needs(demo_fp32_folder: Path) -> None:
    with pytest.raises(runtime.MemoryBudgetError) as raised:
        runtime.load(demo_fp32_folder, max_memory=1000)
    assert (raised.value.max_memory, raised.value.taken) == (1000, 0)
    assert raised.value.needed > 1000
    enough = runtime.estimate(demo_fp32_folder, context=64).total
    with (
        runtime.load(demo_fp32_folder, max_memory=enough) as model,
        pytest.raises(runtime.MemoryBudgetError) as raised,
    ):
        runtime.complete(["Once"] * 64, model=model, batch_size=64, max_new_tokens=400)
    assert raised.value.taken + raised.value.needed > raised.value.max_memory == enough


def test_a_prefix_file_of_another_model(demo_fp32: Model, tmp_path: Path) -> None:
    (tmp_path / "no.prefix").write_bytes(b"nothing")
    with pytest.raises(runtime.PrefixFileError, match=r"no\.prefix.*make the prefix again"):
        runtime.load_prefix(tmp_path / "no.prefix", model=demo_fp32)


# the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "param", "code"),
    [
        (errors.ContextLengthError("too long", 700, 64, 512), "prompt", "context_length_exceeded"),
        (errors.OptionError("top_k needs a temperature", "top_k", "temperature"), "top_k", None),
        (errors.OptionError("max_new_tokens is 0", "max_new_tokens"), "max_tokens", None),
        (errors.OptionError("no option is to blame"), None, None),
        (errors.NoTokenError("none left"), None, None),
        (TypeError("a wrong type"), None, None),
    ],
    ids=repr,
)
def test_the_server_says_which_field_is_to_blame(error: Exception, param: str | None, code: str | None) -> None:
    server = pytest.importorskip("runtime.server.errors", exc_type=ImportError)
    reply = server.as_api_error(error)
    assert reply.status == 400
    # OpenAI's words, which clients look for.
    prefix = "this model's maximum context length is 512 tokens: " if code == "context_length_exceeded" else ""
    message = prefix + str(error).replace("max_new_tokens", "max_tokens")
    expected = {"message": message, "type": "invalid_request_error"}
    assert reply.body == {"error": expected | {"param": param, "code": code}}
