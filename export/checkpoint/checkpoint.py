"""Open a GPT-2 checkpoint from any source: its config, its tensors, which are read one at a time, and its tokenizer."""

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
    """A checkpoint folder that has been opened and checked.

    source: as the user gave it. commit: of a hub repository. other_tokenizer: the folder of a tokenizer that is used
    instead of the checkpoint's own. kind: the kind of the source, in words. adapters: the names of the adapters that
    are merged into the weights.
    """

    name: str
    source: str
    folder: Path
    config: Config
    raw_config: dict[str, Any]
    tensors: Tensors
    commit: str | None = None
    other_tokenizer: Path | None = None
    kind: str = FOLDER
    adapters: Sequence[str] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer and its settings."""
        return self.other_tokenizer or self.folder

    @property
    def is_random(self) -> bool:
        """Whether the weights are random, so that measured quality means nothing."""
        return self.source.startswith(RANDOM)


def model_name(source: str) -> str:
    """The name of the model: the last part of a folder or repository, or a file's name without its suffix.

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

    Files that have to be converted first are written to `work`. tokenizer: a folder whose tokenizer is used instead of
    the checkpoint's own. revision: of a hub repository. allow_pickle: read weights from pickles. adapters: folders of
    LoRA adapters to merge. Raises ValueError or OSError, naming the file, for what is wrong with it;
    ModuleNotFoundError for a package that a conversion needs.
    """
    if tokenizer and not source.startswith(RANDOM):
        tokenizer = _readable_tokenizer(tokenizer, work)
    for folder in adapters:
        # Errors of an adapter's settings come before a download.
        adapter.read_settings(folder)
    found = sources.find(source, work, tokenizer, revision, allow_pickle=allow_pickle)
    folder = found.folder
    if adapters:
        folder = adapter.merge(folder, adapters, work / "merged", allow_pickle=allow_pickle)
    config, raw = config_file.read(folder / "config.json")
    # Random weights and nanoGPT's character models were written together with their tokenizer.
    has_tokenizer = source.startswith(RANDOM) or (found.kind == sources.NANOGPT and found.has_tokenizer)
    other_tokenizer = _other_tokenizer(folder, None if has_tokenizer else tokenizer, work, raw)
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


def _other_tokenizer(folder: Path, named: Path | None, work: Path, raw_config: dict[str, Any]) -> Path | None:
    """The folder of the tokenizer to use, if it is not the checkpoint's own: the user's, or the own one converted.

    Raises FileNotFoundError if there is none at all.
    """
    if named is not None:
        return named
    if tokenizer_conversion.slow_file(folder):
        return tokenizer_conversion.convert(folder, work / "tokenizer")
    check_tokenizer(folder, raw_config)
    return None


def _readable_tokenizer(folder: Path, work: Path) -> Path:
    """The user's tokenizer folder, or a folder with that tokenizer converted; its errors come before a download."""
    if (folder / "meta.pkl").is_file():
        return folder
    if tokenizer_conversion.slow_file(folder):
        return tokenizer_conversion.convert(folder, work / "tokenizer")
    tokenizer_file.read(folder)
    return folder
