"""Sources of checkpoints: a folder, a hub id, random weights, or a file of nanoGPT, llm.c or llama.cpp.

Each is converted to a folder in transformers' format: `config.json`, safetensors, a tokenizer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from export.checkpoint import diagnosis, gguf_file, hub, llm_c, nanogpt, pickle_file, random_weights
from export.checkpoint import tokenizer as tokenizer_file

RANDOM = "random:"
FOLDER = "checkpoint"
NANOGPT = "nanoGPT checkpoint"
LLM_C = "llm.c checkpoint"
GGUF = "GGUF file"
_END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Found:
    """A source that has become a checkpoint folder.

    kind: in words, for the card. commit: of a hub repository. has_tokenizer: False if the folder has none, so that the
    one that the user names is used.
    """

    folder: Path
    kind: str = FOLDER
    commit: str | None = None
    has_tokenizer: bool = True


def check(path: Path, *, allow_pickle: bool) -> None:
    """Check that a path is a checkpoint that can be read; weights are not read.

    Raises NotADirectoryError, FileNotFoundError, ModuleNotFoundError or ValueError, saying what to do.
    """
    if not path.is_file():
        diagnosis.check_folder(path)
        return
    kind = kind_of_file(path)
    if kind == GGUF:
        gguf_file.check_installed()
    if kind == NANOGPT and not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, which may run code when it is read; --allow-pickle reads it, tensors and plain data "
            "only, with torch, and runs nothing"
        )
    if kind != NANOGPT and allow_pickle:
        raise ValueError(f"--allow-pickle reads pickles, and {path} is none: it is a {kind}")


def kind_of_file(path: Path) -> str:
    """The kind of a checkpoint that is one file, by its first bytes. Raises NotADirectoryError for another file."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == gguf_file.MAGIC:
        return GGUF
    magic = int.from_bytes(begin, "little")
    if magic == llm_c.MAGIC:
        return LLM_C
    # torch.save writes a zip file; pickles of protocol 2 and later begin with 0x80.
    is_pickle = begin[:2] == b"PK" or begin[:1] == b"\x80"
    if is_pickle and not diagnosis.WEIGHTS.fullmatch(path.name):
        return NANOGPT
    if (other := llm_c.other_file(magic)) is not None:
        raise ValueError(f"{path} is {other} of llm.c; its model is the .bin file that train_gpt2 writes")
    raise NotADirectoryError(
        f"{path} is a file; give the folder that holds the checkpoint, or a file of nanoGPT (ckpt.pt), of llm.c (.bin) "
        "or in the format GGUF"
    )


def find(source: str, work: Path, tokenizer: Path | None, revision: str | None, *, allow_pickle: bool) -> Found:
    """Turn a source into a checkpoint folder, in `work` if it has to be converted.

    tokenizer: the folder that the user names for it. Raises the errors of the module for each kind of source.
    """
    target = work / "checkpoint"
    if source.startswith(RANDOM):
        random_weights.write(source.removeprefix(RANDOM), target, tokenizer)
        return Found(target)
    path = Path(source)
    if path.exists():
        check(path, allow_pickle=allow_pickle)
    if path.is_file():
        return _convert(path, target, tokenizer)
    if path.exists():
        return Found(pickle_file.convert(path, target) if allow_pickle else path)
    folder = hub.download(source, revision, allow_pickle=allow_pickle, needs_tokenizer=tokenizer is None)
    commit = folder.name
    return Found(pickle_file.convert(folder, target) if allow_pickle else folder, commit=commit)


def _convert(path: Path, target: Path, tokenizer: Path | None) -> Found:
    kind = kind_of_file(path)
    if kind == GGUF:
        return Found(gguf_file.convert(path, target, with_tokenizer=tokenizer is None), kind)
    if kind == NANOGPT:
        has_own = nanogpt.find_meta(path, tokenizer) is not None
        return Found(nanogpt.convert(path, target, tokenizer), kind, has_tokenizer=has_own)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{path} has no tokenizer, as llm.c keeps it elsewhere: --tokenizer FOLDER takes that of GPT-2"
        )
    end = tokenizer_file.read(tokenizer).token_to_id(_END)
    return Found(llm_c.convert(path, target, end), kind, has_tokenizer=False)
