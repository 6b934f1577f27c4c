"""Prefixes on disk: what is loaded is what was saved, also from the command line.

safetensors' own library is the oracle.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import runtime
from runtime import Prefix, complete, generate, load, load_prefix
from runtime.cli import parser as cli
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from tests.support.building import make_link
from tests.support.prefix_files import TEXT, save_elsewhere
from tests.support.prefix_files import folders as folders
from tests.support.prefix_files import path as path
from tests.support.prefix_files import prefix as prefix
from tests.support.prefix_files import tiny as tiny

# there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", TEXT[:PREFILL_STEP], TEXT, TEXT + "<|endoftext|>"], ids=len)
@pytest.mark.parametrize("special_tokens", [False, True])
def test_a_loaded_prefix_is_the_saved_one(tiny: Model, tmp_path: Path, text: str, special_tokens: bool) -> None:
    saved = runtime.prefix(text, model=tiny, special_tokens=special_tokens)
    saved.save(str(tmp_path / "ñ 🎉"))
    loaded = load_prefix(str(tmp_path / "ñ 🎉"), model=tiny)
    same = ("model", "text", "ids", "special_tokens", "identity", "n_kept", "nbytes")
    assert [getattr(loaded, name) for name in same] == [getattr(saved, name) for name in same]
    np.testing.assert_array_equal(loaded.keys_values, saved.keys_values)
    assert loaded.keys_values.dtype == np.float32
    assert not loaded.keys_values.flags.writeable
    assert repr(loaded) == repr(saved)
    options: dict[str, Any] = {"logprobs": 3, "max_new_tokens": 5, "special_tokens": special_tokens}
    found, expected = (complete(text + " ab", prefix=one, **options)[0] for one in (loaded, saved))
    assert (found.ids, found.logprobs, found.top_logprobs) == (expected.ids, expected.logprobs, expected.top_logprobs)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ñ 🎉"]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_model_opened_again_loads_it(folders: dict[str, Path], path: Path, threads: int) -> None:
    with load(folders["int8"], threads=threads) as model:
        assert generate(TEXT, prefix=load_prefix(path, model=model)) == generate(TEXT, model=model)
    assert generate(TEXT, prefix=load_prefix(path, model=str(folders["int8"]))) == generate(TEXT, model=model.folder)


@pytest.mark.parametrize("text", ["a", TEXT * 3], ids=len)
def test_a_plain_exports_prefix_is_saved(demo_reference: Model, tmp_path: Path, text: str) -> None:
    runtime.prefix(text, model=demo_reference).save(tmp_path / "plain")
    prefix = load_prefix(tmp_path / "plain", model=demo_reference)
    assert (prefix.n_kept > 0) == (text != "a")
    assert generate(text, prefix=prefix, max_new_tokens=5) == generate(text, model=demo_reference, max_new_tokens=5)


def test_safetensors_reads_and_writes_it(tiny: Model, prefix: Prefix, path: Path) -> None:
    with safe_open(path, "numpy") as file:
        about, tensor = file.metadata(), file.get_tensor("keys_values")
        assert list(file.keys()) == ["keys_values"]
    np.testing.assert_array_equal(tensor, prefix.keys_values)
    assert (about["text"], json.loads(about["ids"])) == (TEXT, list(prefix.ids))
    save_elsewhere(path, about, tensor)
    np.testing.assert_array_equal(load_prefix(path, model=tiny).keys_values, tensor)


def test_a_file_is_about_as_large_as_the_prefix(prefix: Prefix, path: Path) -> None:
    header = json.dumps([prefix.text, prefix.ids])
    assert 0 < path.stat().st_size - prefix.nbytes < 2 * len(header) + 1000


def test_a_save_that_fails_leaves_the_old_file(
    tiny: Model, prefix: Prefix, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"no space left.*{path.name}"):
        runtime.prefix("other", model=tiny).save(path)
    assert load_prefix(path, model=tiny).text == prefix.text
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    runtime.prefix("other", model=tiny).save(path)
    assert load_prefix(path, model=tiny).text == "other"


def test_only_a_file_is_replaced_and_a_link_stays_one(tiny: Model, prefix: Prefix, tmp_path: Path) -> None:
    for place in (tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match="is no regular file"):
            prefix.save(place)
    with pytest.raises(FileNotFoundError, match="kept"):
        prefix.save(tmp_path / "missing" / "kept")
    make_link(tmp_path / "link", tmp_path / "kept")
    prefix.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_prefix(tmp_path / "kept", model=tiny).text == prefix.text


# on the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def command(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command with the tiny model as its default: status, standard output and error."""
    monkeypatch.setenv("GPT2_EDGE_MODEL", str(folders["int8"]))

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    return run


def test_the_command_writes_the_file_of_the_function(
    tiny: Model, prefix: Prefix, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file = tmp_path / "p"
    expected = f"{prefix.n_kept} of {len(prefix.ids)} tokens kept, {prefix.nbytes / 1e6:.1f} MB\n"
    assert command("prefix", "-", "--output", str(file), stdin=TEXT) == (0, expected, "")
    prefix.save(tmp_path / "q")
    assert file.read_bytes() == (tmp_path / "q").read_bytes()
    status, out, _ = command("prefix", f"<|endoftext|>{TEXT}", "--output", str(file), "--json", "--special-tokens")
    found = load_prefix(file, model=tiny)
    assert found.special_tokens
    facts = {"tokens": len(found.ids), "kept": found.n_kept, "bytes": found.nbytes}
    assert (status, json.loads(out)) == (0, facts)


def test_the_command_fails_where_a_prefix_saves_nothing(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    file = tmp_path / "p"
    status, out, err = command("prefix", "abc", "--output", str(file))
    assert (status, out) == (1, "")
    assert f"a prefix of 3 tokens would save nothing: it counts in steps of {PREFILL_STEP} tokens" in err
    assert not file.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", TEXT + "a", "--max-new-tokens=5"],
        ["complete", TEXT + "a", TEXT, "--max-new-tokens=5", "--num-beams=2"],
        ["complete", TEXT + "a", TEXT, "--max-new-tokens=5", "--temperature=0.9", "--seed=1"],
        ["score", " a", "--context", TEXT + "a"],
        ["perform", "choose", TEXT + "a", "--field", 'options=["a", "b"]'],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_print_the_same_with_it(
    path: Path, command: Callable[..., tuple[int, str, str]], arguments: list[str]
) -> None:
    expected = command(*arguments)
    assert command(*arguments, "--prefix", str(path)) == expected
    assert expected[0] == 0
    status, _, err = command(*[argument.replace("Qué", "Que") for argument in arguments], "--prefix", str(path))
    assert status == 1
    assert "at character 3 the prefix has 'é tal?" in err


def test_a_text_without_context_has_no_prefix(path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = command("score", TEXT, "--prefix", str(path))
    assert (status, err) == (
        1,
        "gpt2-edge: error: --prefix is of a --context; of a text without one every token is scored\n",
    )
