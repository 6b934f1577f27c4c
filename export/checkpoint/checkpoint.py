"""A GPT-2 checkpoint, whatever its source: config, tensors read one at a time, tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.checkpoint import adapter, sources, tokenizer_conversion
from export.checkpoint import config as config_file
from export.checkpoint import tokenizer as tokenizer_file
from export.checkpoint.config import Config
from export.checkpoint.diagnosis import check_tokenizer
from export.checkpoint.sources import FOLDER, RANDOM
from export.checkpoint.weights import Tensors


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been opened and checked."""

    name: str
    source: str  # as the user gave it
    folder: Path
    config: Config
    raw_config: dict[str, Any]
    tensors: Tensors
    commit: str | None = None  # of a hub repository
    other_tokenizer: Path | None = None  # the folder of one that takes the place of the checkpoint's own
    kind: str = FOLDER  # what the source is, in words
    adapters: Sequence[str] = ()  # names of the adapters that are merged into it

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer and its settings are."""
        return self.other_tokenizer or self.folder

    @property
    def is_random(self) -> bool:
        """Whether the weights are noise, so that no quality can be measured."""
        return self.source.startswith(RANDOM)


def model_name(source: str) -> str:
    """What the model is called: the last part of a folder or repository, or a file's name without its ending.

    `random:gpt2` is `random-gpt2`; nanoGPT's `out/ckpt.pt` is named after its folder.
    """
    if source.startswith(RANDOM):
        return source.replace(":", "-")
    path = Path(source)
    if path.is_file():
        return path.resolve().parent.name if path.name == "ckpt.pt" else path.stem
    return path.resolve().name if path.name in ("", "..") else path.name


def open_checkpoint(
    source: str,
    work: Path,
    *,
    tokenizer: Path | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    adapters: Sequence[Path] = (),
) -> Checkpoint:
    """Open a folder, a file, a hub id (downloaded once, then cached) or `random:SIZE`.

    What has to be converted first is written under `work`. tokenizer: folder whose tokenizer takes the place of the
    checkpoint's own. revision: of a hub repository. allow_pickle: the weights are in pickles. adapters: folders of
    LoRA adapters to merge. Raises ValueError or OSError saying what is wrong with which file, ModuleNotFoundError for
    a package that a conversion needs.
    """
    is_random = source.startswith(RANDOM)
    if tokenizer and not is_random:
        tokenizer = _readable_tokenizer(tokenizer, work)
    for folder in adapters:
        # whatever is wrong with it is said before a download
        adapter.read_settings(folder)
    found = sources.find(source, work, tokenizer, revision, allow_pickle=allow_pickle)
    folder = found.folder
    if adapters:
        folder = adapter.merge(folder, adapters, work / "merged", allow_pickle=allow_pickle)
    config, raw = config_file.read(folder / "config.json")
    # a tokenizer that noise, or a nanoGPT model of characters, was given is in its folder already
    is_taken = is_random or (found.kind == sources.NANOGPT and found.has_tokenizer)
    other_tokenizer = None if is_taken else tokenizer
    if other_tokenizer is None and tokenizer_conversion.slow_file(folder):
        other_tokenizer = tokenizer_conversion.convert(folder, work / "tokenizer")
    if other_tokenizer is None:
        check_tokenizer(folder, raw)
    tokenizer_file.check(other_tokenizer or folder, config.vocab_size)
    tensors = Tensors(folder, config)
    if message := tensors.left_out():
        print(f"      {message}", flush=True)
    return Checkpoint(
        name=model_name(source),
        source=source,
        folder=folder,
        config=config,
        raw_config=raw,
        tensors=tensors,
        commit=found.commit,
        other_tokenizer=other_tokenizer,
        kind=found.kind,
        adapters=[path.resolve().name for path in adapters],
    )


def _readable_tokenizer(folder: Path, work: Path) -> Path:
    """The folder that the user names, or its tokenizer converted; what is wrong with it is said before a download."""
    if (folder / "meta.pkl").is_file():
        return folder
    if tokenizer_conversion.slow_file(folder):
        return tokenizer_conversion.convert(folder, work / "tokenizer")
    tokenizer_file.read(folder)
    return folder
