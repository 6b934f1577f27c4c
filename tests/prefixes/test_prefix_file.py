"""Prefixes on disk: what is loaded is what was saved, also from the command line; other files raise errors.

safetensors' own library is the oracle.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import runtime
from runtime import Prefix, complete, generate, load, load_prefix
from runtime.cli import parser as cli
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.prefixes import prefix as prefix_module
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
    assert loaded.keys_values.dtype == saved.keys_values.dtype == np.int8
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


# files that are refused: of another model or runtime, damaged or made up ----------------------------------------------

many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header, and the values."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def join(path: Path, header: object, values: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


def refusal(path: Path, model: Model) -> str:
    with pytest.raises(ValueError, match="make the prefix again") as caught:
        load_prefix(path, model=model)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize(("other", "why"), [("fp32", "another model, or another build"), ("other", "another model")])
def test_another_model_is_refused(folders: dict[str, Path], path: Path, other: str, why: str) -> None:
    with load(folders[other]) as model:
        assert why in refusal(path, model)


def test_another_tokenizer_is_refused(folders: dict[str, Path], path: Path) -> None:
    with load(folders["other"]) as model:
        header, values = split(path)
        header["__metadata__"]["model"] = runtime.prefix("a", model=model).identity
        assert "other ids by this model's tokenizer" in refusal(join(path, header, values), model)


def test_what_may_compute_other_bits_is_refused(tiny: Model, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.2.3")
        assert f"computed by onnxruntime {onnxruntime.__version__}" not in refusal(path, tiny)
        assert "and this is 1.2.3" in refusal(path, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(prefix_module, "PREFILL_STEP", PREFILL_STEP // 2)
        assert f"computed {PREFILL_STEP} tokens a pass, and this runtime takes {PREFILL_STEP // 2}" in refusal(
            path, tiny
        )
    with monkeypatch.context() as patch:
        patch.setattr(prefix_module, "_N_PROBE", 15)
        assert "another processor" in refusal(path, tiny)
    load_prefix(path, model=tiny)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"].pop(name)


def with_tensor(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["keys_values"].update(changes)


def without_text(ids: str) -> Callable[[dict[str, Any]], object]:
    """The header of a prefix that was made of ids, with these."""
    return lambda header: (header["__metadata__"].pop("text"), header["__metadata__"].update(ids=ids))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *((without(name), "says no") for name in ("ids", "probe", "model", "format", "special_tokens")),
        *((without_text(ids), "its ids are not") for ids in ("[1", "1", "[-1]", "[99999999]", "[1.5]", "[" * 100_000)),
        (without_text("[]"), "it has no ids"),
        (without_text("[1, 2]"), "its tensor is"),
        (without("sha256"), "no safetensors file of one float32 or int8"),
        (lambda header: header["__metadata__"].update(ids=[1]), "no safetensors file of one float32 or int8"),
        (lambda header: header["__metadata__"].update(text="\ud800"), "surrogate"),
        (lambda header: header["__metadata__"].update(text=""), "empty"),
        (lambda header: header["__metadata__"].update(text=TEXT + "a"), "other ids"),
        (lambda header: header["__metadata__"].update(format="gpt2-edge prefix 3"), "format is 'gpt2-edge prefix 3'"),
        (lambda header: header["__metadata__"].update(special_tokens="maybe"), "'maybe' of special_tokens"),
        (lambda header: header["__metadata__"].update(sha256="0" * 64), "damaged: its values differ"),
        (lambda header: header.update(more={}), "no safetensors file of one float32 or int8"),
        (lambda header: header.pop("__metadata__"), "no safetensors file of one float32 or int8"),
        (lambda header: header.update(__metadata__="text"), "no safetensors file of one float32 or int8"),
        (lambda header: header.update(keys_values=[]), "no safetensors file of one float32 or int8"),
        (with_tensor(dtype="F16"), "no safetensors file of one float32 or int8"),
        (with_tensor(shape=7), "no safetensors file of one float32 or int8"),
        (with_tensor(shape=[-1, -1]), "no safetensors file of one float32 or int8"),
        (with_tensor(shape=[True] * 5), "no safetensors file of one float32 or int8"),
        (with_tensor(shape=[1] * 9), "no safetensors file of one float32 or int8"),
        (with_tensor(shape=[2**31, 1, 1, 1, 1]), "no safetensors file of one float32 or int8"),
        (with_tensor(data_offsets=[4, 8]), "no safetensors file of one float32 or int8"),
    ],
)
def test_a_header_that_says_otherwise_is_refused(
    tiny: Model, path: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    header, values = split(path)
    change(header)
    assert why in refusal(join(path, header, values), tiny)


def test_other_shapes_types_and_values_are_refused(tiny: Model, prefix: Prefix, path: Path) -> None:
    about, values = split(path)[0]["__metadata__"], prefix.keys_values
    save_elsewhere(path, about, values.reshape(-1))
    assert f"its tensor is [{values.size}], not [2, 2, 4, {PREFILL_STEP}, 16]" in refusal(path, tiny)
    save_elsewhere(path, about, np.ascontiguousarray(values[:, :, :, 1:]))
    assert f"its tensor is [2, 2, 4, {PREFILL_STEP - 1}, 16]" in refusal(path, tiny)
    save_elsewhere(path, about, values.astype(np.float16))
    assert "one float32 or int8 tensor" in refusal(path, tiny)
    save_elsewhere(path, about, values.astype(np.float32))
    assert "its tensor is float32, and says that it is int8" in refusal(path, tiny)


def test_values_that_are_not_finite_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with load(folders["int8"], cache="fp32") as model:
        prefix = runtime.prefix(TEXT, model=model)
        dataclasses.replace(prefix, keys_values=np.full_like(prefix.keys_values, np.nan)).save(tmp_path / "wrong")
        assert "not finite" in refusal(tmp_path / "wrong", model)


def test_a_prefix_is_of_one_type_of_cache(folders: dict[str, Path], path: Path, prefix: Prefix) -> None:
    with load(folders["int8"], cache="fp32") as model:
        assert "its keys and values are int8, and this model was loaded with cache='fp32'" in refusal(path, model)
        with pytest.raises(ValueError, match=r"the prefix are int8, and the model was loaded with cache='fp32'"):
            generate(TEXT, prefix=prefix, model=model)
        other = runtime.prefix(TEXT, model=model)
        assert other.nbytes == 4 * prefix.nbytes
        other.save(path)
        assert generate(TEXT, prefix=load_prefix(path, model=model)) == generate(TEXT, model=model)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100, 5000, -1, -1000])
def test_the_beginning_of_a_file_is_refused(tiny: Model, path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])
    refusal(path, tiny)


def test_a_longer_file_is_refused(tiny: Model, path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"it has {size + 1} bytes, not {size}" in refusal(path, tiny)


@many
@given(data=st.binary(max_size=200), n=st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(0, 200)))
def test_any_bytes_are_refused(tiny: Model, tmp_path: Path, data: bytes, n: int | None) -> None:
    (tmp_path / "any").write_bytes((b"" if n is None else n.to_bytes(8, "little")) + data)
    refusal(tmp_path / "any", tiny)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["__metadata__", "keys_values", "shape", "dtype", "text"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@many
@given(header=JSON)
def test_any_header_is_refused(tiny: Model, tmp_path: Path, header: object) -> None:
    refusal(join(tmp_path / "any", header, b"\0" * 8), tiny)


def test_a_shape_of_thousands_of_long_numbers_is_refused_at_once(tiny: Model, tmp_path: Path) -> None:
    shape = ",".join(["9" * 4299] * 3700)
    tensor = f'{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,0]}}'
    text = f'{{"__metadata__":{{"sha256":"x"}},"keys_values":{tensor}}}'
    (tmp_path / "bomb").write_bytes(len(text).to_bytes(8, "little") + text.encode())
    begin = time.monotonic()
    refusal(tmp_path / "bomb", tiny)
    # Multiplied, they would take minutes.
    assert time.monotonic() - begin < 20


def test_a_header_of_many_levels_is_refused(tiny: Model, tmp_path: Path) -> None:
    text = b"[" * 100_000
    (tmp_path / "deep").write_bytes(len(text).to_bytes(8, "little") + text)
    refusal(tmp_path / "deep", tiny)


@many
@given(at=st.integers(0), byte=st.integers(0, 255), in_header=st.booleans())
def test_a_changed_byte_is_refused(
    tiny: Model, prefix: Prefix, tmp_path: Path, at: int, byte: int, in_header: bool
) -> None:
    prefix.save(tmp_path / "changed")
    data = bytearray((tmp_path / "changed").read_bytes())
    at %= len(data) - prefix.nbytes if in_header else len(data)
    if data[at] == byte or chr(data[at]).isspace():  # JSON has several kinds of white space
        return
    data[at] = byte
    (tmp_path / "changed").write_bytes(data)
    refusal(tmp_path / "changed", tiny)


def test_no_file_and_no_folder(tiny: Model, prefix: Prefix, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        load_prefix(tmp_path / "missing", model=tiny)
    with pytest.raises(OSError, match=r"irectory|denied"):
        load_prefix(tmp_path, model=tiny)
    with pytest.raises(FileNotFoundError):
        prefix.save(tmp_path / "missing" / "file")


def test_a_closed_model_saves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    with load(folders["int8"]) as model:
        prefix = runtime.prefix("abc", model=model)
    with pytest.raises(ValueError, match="closed"):
        prefix.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())
