"""Tiny checkpoints, made without torch, and the build command run on them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export import build
from export.checkpoint import random_weights as random_checkpoint
from export.checkpoint.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "export" / "build.py"
EVERY_CALL = REPOSITORY / "tests" / "support" / "every_call.py"
END = random_checkpoint.END
TINY = Config(vocab_size=257, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=256, eos_token_id=256)
TEXT = "A tiny model needs a tiny text, and a little of it is enough.\n" * 10
QUICK = ("--no-reference", "--verify", "none")
FILES = {
    "README.md",
    "SHA256SUMS",
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "golden.json",
    "model.onnx",
    "model.onnx_data",
    "model_int8_cache.onnx",
    "quality.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def write_tiny(folder: Path, config: Config = TINY) -> Path:
    """A checkpoint of some 100 kB with a text of its own to be measured on; its ids are bytes."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer.mkdir(parents=True)
    byte_tokenizer(config.vocab_size).save(str(tokenizer / "tokenizer.json"))
    with mock.patch.dict(random_checkpoint.SIZES, tiny=config):
        random_checkpoint.write("tiny", folder, tokenizer)
    shutil.rmtree(tokenizer)
    (folder / "evaluation.txt").write_text(TEXT, encoding="utf-8")
    return folder


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Every byte is a token, the last id ends the text, and what is between is never used."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"unused {index}" for index in range(len(words), vocab_size - 1)]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def run_build(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, start: Sequence[str | Path] = (SCRIPT,)
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `start`: what follows `python`."""
    return run(sys.executable, *start, *arguments, cwd=cwd, env=env)


def run(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Any command, with what it prints."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The command in this process, as a terminal would run it: its exit code."""
    monkeypatch.setattr(sys, "argv", ["export/build.py", *map(str, arguments)])
    before = signal.getsignal(signal.SIGINT)
    try:
        return build.run()
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        return exit_.code
    finally:
        signal.signal(signal.SIGINT, before)


def error_line(output: str) -> str:
    """The one line that says what failed: no traceback, nothing after it."""
    line = output.strip().splitlines()[-1]
    assert "Traceback" not in output, output
    assert line.startswith("error: "), output
    return line


def make_link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
