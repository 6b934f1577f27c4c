"""llm.c's `.bin` files: the model that llm.c has, at both of its precisions; damaged files are refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch

from export import build
from export.checkpoint.checkpoint import open_checkpoint
from tests.support.building import QUICK, byte_tokenizer, error_line, run_here
from tests.support.checkpoints import CLOSE, difference, folder_logits, some_ids
from tests.support.plain_gpt2 import State, logits, random_state

N_HEAD, N_LAYER, N_EMBD, N_POSITIONS, VOCAB, PADDED = 4, 3, 64, 64, 300, 384
MAGIC = 20240326
# the order of llm.c's write_tensors, each for all layers
ORDER = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def write_llm_c(
    path: Path, *, version: int = 3, magic: int = MAGIC, n_head: int = N_HEAD, vocab: int = VOCAB, seed: int = 0
) -> State:
    """A checkpoint as llm.c's train_gpt2.py writes it; returns its weights, as they are stored."""
    dtype = torch.float32 if version == 3 else torch.bfloat16
    state = {name: tensor.to(dtype) for name, tensor in random_state(VOCAB, N_POSITIONS, N_EMBD, N_LAYER).items()}
    padding = torch.zeros(PADDED - VOCAB, N_EMBD, dtype=dtype)
    tensors = [torch.cat([state["transformer.wte.weight"], padding]), state["transformer.wpe.weight"]]
    for module in ORDER:
        for part in ("weight", "bias"):
            tensors += [state[f"transformer.h.{layer}.{module}.{part}"] for layer in range(N_LAYER)]
    tensors += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    header = [magic, version, N_POSITIONS, vocab, N_LAYER, n_head, N_EMBD, PADDED]
    with path.open("wb") as file:
        file.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
        for tensor in tensors:
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return {name: tensor.float() for name, tensor in state.items()}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Of as many tokens as the model has."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    byte_tokenizer(VOCAB).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("version", [3, 5])
def test_logits_are_those_of_llm_c(tmp_path: Path, tokenizer: Path, version: int) -> None:
    state = write_llm_c(tmp_path / "model_000100.bin", version=version)
    work = ["--tokenizer", str(tokenizer), "--precision", "fp32", *QUICK, "--output", str(tmp_path / "model")]
    build.main([str(tmp_path / "model_000100.bin"), *work])
    ids = some_ids(30, VOCAB)
    # OpenAI's approximation of gelu
    expected = logits(state, ids, N_HEAD, "tanh")
    assert difference(folder_logits(tmp_path / "model", ids), expected) < CLOSE
    assert difference(logits(state, ids, N_HEAD, "none"), expected) > 10 * CLOSE
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "made by gpt2-edge from a llm.c checkpoint on disk, `model_000100`" in card
    assert "python export/build.py model_000100.bin --tokenizer tokenizer" in card


def test_the_end_of_text_is_the_tokenizers(tmp_path: Path, tokenizer: Path) -> None:
    write_llm_c(tmp_path / "model.bin")
    checkpoint = open_checkpoint(str(tmp_path / "model.bin"), tmp_path, tokenizer=tokenizer)
    assert (checkpoint.config.vocab_size, checkpoint.config.eos_token_id) == (VOCAB, VOCAB - 1)
    assert checkpoint.name == "model"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1234")


def of_an_older_version(path: Path) -> None:
    write_llm_c(path, version=1)


def of_impossible_sizes(path: Path) -> None:
    write_llm_c(path, n_head=0)


def of_a_thousand_layers(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[16:20] = struct.pack("<i", 1000)
    path.write_bytes(content)


def of_more_ids_than_rows(path: Path) -> None:
    write_llm_c(path, vocab=PADDED + 1)


def a_tokenizer(path: Path) -> None:
    write_llm_c(path, magic=20240328)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"is truncated: it has [\d,]+ bytes, and its header asks for [\d,]+"),
        (cut_in_the_header, "is truncated: its header has 100 bytes, 1024 are needed"),
        (grown, "has more than its weights: it has"),
        (of_an_older_version, r"of version 1; version 3 \(fp32\) and 5 \(bf16\) are read"),
        (of_impossible_sizes, "n_head is 0; a whole number of at least 1"),
        (of_a_thousand_layers, "is truncated: it has"),
        (of_more_ids_than_rows, "a vocabulary of 385 padded to 384"),
        (a_tokenizer, "is the tokenizer of llm.c; its model is the .bin file"),
    ],
)
def test_a_file_that_is_not_whole(
    tmp_path: Path,
    tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: object,
    message: str,
) -> None:
    path = tmp_path / "model.bin"
    write_llm_c(path)
    assert callable(damage)
    damage(path)
    typed: list[str | Path] = [path, "--tokenizer", tokenizer, *QUICK, "--output", tmp_path / "model"]
    assert run_here(monkeypatch, *typed) == 1
    line = error_line(capsys.readouterr().err)
    assert str(path) in line
    assert re.search(message, line)
    assert not (tmp_path / "model").exists()


def test_without_a_tokenizer_it_is_refused(tmp_path: Path) -> None:
    write_llm_c(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.bin has no tokenizer.*--tokenizer FOLDER takes that of GPT-2"):
        open_checkpoint(str(tmp_path / "model.bin"), tmp_path)


def test_it_is_no_pickle(tmp_path: Path, tokenizer: Path) -> None:
    write_llm_c(tmp_path / "model.bin")
    with pytest.raises(ValueError, match=r"--allow-pickle reads pickles, and .* is none: it is a llm.c checkpoint"):
        open_checkpoint(str(tmp_path / "model.bin"), tmp_path, tokenizer=tokenizer, allow_pickle=True)
