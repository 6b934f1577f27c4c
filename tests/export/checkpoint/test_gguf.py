"""GGUF files of GPT-2: the weights that gguf dequantizes, the tokenizer of the metadata, as transformers reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

import runtime
from export import build
from export.checkpoint.checkpoint import open_checkpoint
from tests.conftest import DEMO
from tests.support.building import QUICK, error_line, run_here
from tests.support.checkpoints import CLOSE, difference, folder_logits, some_ids, torch_logits, write_checkpoint
from tests.support.optional import optional

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = some_ids(40)
NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTER = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
CONTROL = 3
Content = dict[str, Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that writes with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("gguf") / "base"
    write_checkpoint(folder, vocab_size=8192, bos_token_id=0, eos_token_id=0)
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    return folder


def metadata() -> Content:
    """What llama.cpp's convert_hf_to_gguf.py writes for GPT-2."""
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "gpt2.context_length": 96,
        "gpt2.embedding_length": 64,
        "gpt2.feed_forward_length": 256,
        "gpt2.block_count": 3,
        "gpt2.attention.head_count": 4,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def weights(base: Path) -> Content:
    """By GGUF's names, products as [n_out, n_in]."""
    found: Content = {}
    for name, array in load_file(base / "model.safetensors").items():
        module, _, part = name.removeprefix("transformer.").rpartition(".")
        if module.startswith("h."):
            _, layer, inner = module.split(".", 2)
            stored = f"blk.{layer}.{NAMES[inner]}.{part}"
            found[stored] = np.ascontiguousarray(array.T) if array.ndim == 2 else array
        else:
            found[f"{OUTER[module]}.{part}"] = array
    return found


def write_gguf(path: Path, tensors: Content, described: Content, kind: str = "F32", architecture: str = "gpt2") -> Path:
    """A GGUF file by the package gguf; matrices are stored as `kind`."""
    gguf = optional("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in described.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, (str, bool, float)):
            {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}[type(value)](key, value)
        else:
            writer.add_uint32(key, value)
    type_ = gguf.GGMLQuantizationType[kind]
    for name, array in tensors.items():
        is_matrix = array.ndim == 2 and not name.startswith("position_embd")
        stored = gguf.quantize(array, type_) if is_matrix else array
        writer.add_tensor(name, stored, raw_dtype=type_ if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(base: Path, kind: str) -> GPT2LMHeadModel:
    """The checkpoint as transformers opens it, with the matrices that gguf makes of it."""
    gguf = optional("gguf")
    import torch

    type_ = gguf.GGMLQuantizationType[kind]
    model = GPT2LMHeadModel.from_pretrained(base, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.transformer.named_parameters():
            if weight.dim() == 2 and not name.startswith("wpe"):
                array = weight.numpy().T if name.startswith("h.") else weight.numpy()
                exact = gguf.dequantize(gguf.quantize(np.ascontiguousarray(array), type_), type_)
                weight.copy_(torch.tensor(exact.T if name.startswith("h.") else exact))
    return model


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_logits_are_those_of_the_dequantized_weights(base: Path, tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / f"gpt2.{kind}.gguf", weights(base), metadata(), kind)
    build.main([str(path), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")])
    assert difference(folder_logits(tmp_path / "model", IDS), torch_logits(rounded(base, kind), IDS)) < CLOSE
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"made by gpt2-edge from a GGUF file on disk, `gpt2.{kind}`" in card


def test_transformers_reads_the_same(tmp_path: Path) -> None:
    # transformers reads no number of positions but its default
    write_checkpoint(tmp_path / "base", vocab_size=8192, n_positions=1024)
    tensors, about = weights(tmp_path / "base"), metadata() | {"gpt2.context_length": 1024}
    write_gguf(tmp_path / "gpt2.gguf", tensors, about, "Q8_0")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="gpt2.gguf", attn_implementation="eager").eval()
    build.main([str(tmp_path / "gpt2.gguf"), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")])
    assert difference(folder_logits(tmp_path / "model", IDS), torch_logits(theirs, IDS)) < CLOSE


def test_an_output_layer_of_its_own(base: Path, tmp_path: Path) -> None:
    tensors = weights(base)
    tensors["output.weight"] = tensors["token_embd.weight"] + np.float32(0.1)
    path = write_gguf(tmp_path / "gpt2.gguf", tensors, metadata())
    checkpoint = open_checkpoint(str(path), tmp_path)
    assert not checkpoint.config.tie_word_embeddings
    np.testing.assert_array_equal(checkpoint.tensors["lm_head.weight"], tensors["output.weight"])
    # older converters store the embeddings a second time
    tensors["output.weight"] = tensors["token_embd.weight"]
    (tmp_path / "second").mkdir()
    second = open_checkpoint(
        str(write_gguf(tmp_path / "second" / "gpt2.gguf", tensors, metadata())), tmp_path / "second"
    )
    assert second.config.tie_word_embeddings


def test_the_tokenizer_of_the_metadata(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "gpt2.gguf", weights(base), metadata() | {"tokenizer.chat_template": "{{ messages }}"})
    build.main([str(path), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")])
    ours, theirs = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path / "model", DEMO))
    for text in ("Once upon a time", "¿Qué tal? 中文 👩‍👩‍👧", "  two\n\n\ttabs ", "<|endoftext|>a<|endoftext|>"):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
    assert GPT2TokenizerFast.from_pretrained(tmp_path / "model").eos_token == "<|endoftext|>"
    assert (tmp_path / "model" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"
    assert runtime.generate("Once", model=tmp_path / "model", max_new_tokens=3)


def test_a_beginning_before_every_text(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "gpt2.gguf", weights(base), metadata() | {"tokenizer.ggml.add_bos_token": True})
    folder = open_checkpoint(str(path), tmp_path).folder
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Once").ids[0] == 0


def test_another_tokenizer_takes_its_place(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "gpt2.gguf", weights(base), metadata() | {"tokenizer.ggml.model": "llama"})
    with pytest.raises(ValueError, match=r"has a tokenizer 'llama' .* --tokenizer FOLDER takes another in its place"):
        open_checkpoint(str(path), tmp_path)
    (tmp_path / "work").mkdir()
    assert open_checkpoint(str(path), tmp_path / "work", tokenizer=DEMO).tokenizer_folder == DEMO


# refused -----------------------------------------------------------------------------------------------------------


def without(content: Content, name: str) -> None:
    content.pop(name)


CHANGES: list[tuple[Callable[[Content, Content], object], str]] = [
    (lambda tensors, _: tensors.pop("blk.2.ffn_up.bias"), r"has no tensor for h\.2\.mlp\.c_fc\.bias"),
    (lambda tensors, _: tensors.pop("token_embd.weight"), r"has no tensor token_embd\.weight"),
    (
        lambda tensors, _: tensors.update({"blk.0.attn_k.weight": np.zeros((64, 64), "f4")}),
        r"the tensor blk\.0\.attn_k\.weight is no part of GPT-2",
    ),
    (
        lambda tensors, _: tensors.update({"blk.3.attn_norm.bias": np.zeros(64, "f4")}),
        r"blk\.3\.attn_norm\.bias lies beyond the 3 layers",
    ),
    (
        lambda tensors, _: tensors.update({"blk.0.ffn_up.weight": np.zeros((64, 256), "f4")}),
        r"blk\.0\.ffn_up\.weight is \[64, 256\], but the metadata makes it \[256, 64\]",
    ),
    (lambda _, about: about.pop("gpt2.block_count"), r"its metadata has no gpt2\.block_count"),
    (lambda _, about: about.update({"gpt2.attention.head_count": 5}), "n_embd 64 is not a multiple of n_head 5"),
    (
        lambda _, about: about.update({"gpt2.block_count": 1000}),
        "has 40 tensors, and its metadata asks for 1000 layers",
    ),
    (lambda _, about: about.update({"split.count": 3}), "is one part of 3; llama-gguf-split --merge joins them"),
    (lambda _, about: about.pop("tokenizer.ggml.merges"), "a tokenizer without tokens or merges"),
    (lambda _, about: about.update({"tokenizer.ggml.merges": ["no such"]}), "its tokenizer is damaged"),
    (lambda _, about: about.update({"tokenizer.ggml.pre": "llama-bpe"}), "that splits text as 'llama-bpe'"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_file_that_is_not_gpt2s(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Content, Content], object],
    message: str,
) -> None:
    tensors, about = weights(base), metadata()
    change(tensors, about)
    path = write_gguf(tmp_path / "gpt2.gguf", tensors, about)
    assert run_here(monkeypatch, path, *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert str(path) in line
    assert re.search(message, line)


def test_another_architecture(base: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "llama.gguf", weights(base), metadata(), architecture="llama")
    with pytest.raises(ValueError, match="is a model of the architecture 'llama'; 'gpt2' is needed"):
        open_checkpoint(str(path), tmp_path)


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file(base: Path, tmp_path: Path, share: float) -> None:
    path = write_gguf(tmp_path / "gpt2.gguf", weights(base), metadata())
    content = path.read_bytes()
    path.write_bytes(content[: max(4, int(share * len(content)))])
    with pytest.raises(ValueError, match=r"gpt2\.gguf is truncated, damaged or not a GGUF file"):
        open_checkpoint(str(path), tmp_path)


def test_without_the_package_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    (tmp_path / "gpt2.gguf").write_bytes(b"GGUF")
    assert run_here(monkeypatch, tmp_path / "gpt2.gguf", *QUICK, "--output", tmp_path / "model") == 1
    line = error_line(capsys.readouterr().err)
    assert "needs the package gguf, which is not installed: pip install -e '.[export]'" in line
