"""A GPT-2 checkpoint: a folder, a hub id or `random:SIZE` becomes config, tensors read one at a time, and tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from export.checkpoint import config as config_file
from export.checkpoint import hub, pickle_file
from export.checkpoint import random_weights as random_checkpoint
from export.checkpoint import tokenizer as tokenizer_file
from export.checkpoint.config import Config
from export.checkpoint.diagnosis import check_folder, check_tokenizer
from export.checkpoint.weights import weight_files

RANDOM = "random:"
INPUT, OUTPUT = "wte.weight", "lm_head.weight"  # the embeddings, and the output layer where it is not they
ROWS = 4096  # compared at a time
# stored by older versions of transformers, or for other tasks, and no part of the language model
_UNUSED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|multiple_choice_head\..*")
_FLOATS = ("F16", "BF16", "F32", "F64")


class Tensors:
    """The weights in a checkpoint's safetensors files, memory-mapped: one is in memory only while it is used."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Check names, shapes and files against the config; no weight is read.

        Raises FileNotFoundError for missing weights, ValueError naming file and tensor for wrong ones.
        """
        self._files: dict[str, tuple[Path, str]] = {}  # our name -> file, name in the file
        self._shapes = config.tensor_shapes()
        shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            with _opened(path) as handle:
                for name in handle.keys():  # noqa: SIM118  not a dict
                    plain, part = name.removeprefix("transformer."), handle.get_slice(name)
                    self._check_entry(plain, path, name, part.get_dtype())
                    self._files[plain] = path, name
                    shapes[plain] = tuple(part.get_shape())
        if config.tie_word_embeddings and INPUT not in shapes and OUTPUT in shapes:
            # the two are one matrix, stored under the name that the writer chose
            self._files[INPUT], shapes[INPUT] = self._files.pop(OUTPUT), shapes.pop(OUTPUT)
        self._check(folder, shapes, tied=config.tie_word_embeddings)

    def _check_entry(self, plain: str, path: Path, name: str, dtype: str) -> None:
        if plain in self._files:
            raise ValueError(f"{path}: {name} is stored a second time, after {' '.join(map(str, self._files[plain]))}")
        if plain in self._shapes and dtype not in _FLOATS:
            raise ValueError(f"{path}: {name} is {dtype}; weights must be floating point ({', '.join(_FLOATS)})")

    def _check(self, folder: Path, found: dict[str, tuple[int, ...]], *, tied: bool) -> None:
        for name, shape in self._shapes.items():
            if name not in found:
                raise ValueError(f"{folder}: the weights have no tensor {name!r}, which config.json asks for")
            if found[name] != shape:
                path, stored = self._files[name]
                raise ValueError(f"{path}: {stored} is {list(found[name])}, but config.json makes it {list(shape)}")
        ignored = {OUTPUT} if tied else set[str]()
        unknown = [n for n in found if n not in self._shapes and n not in ignored and not _UNUSED.fullmatch(n)]
        if unknown:
            listed = ", ".join(sorted(unknown)[:5])
            raise ValueError(f"{folder}: tensors that are no part of GPT-2 would be lost: {listed}")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The tensor as fp32, whatever it is stored as. Raises ValueError if it holds NaN or infinity."""
        path, stored = self._files[name]
        with _opened(path) as handle, np.errstate(over="ignore"):  # float64 beyond fp32 becomes infinity
            array: NDArray[np.float32] = handle.get_tensor(stored).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {stored} holds NaN or infinity; the checkpoint is damaged")
        return array

    def left_out(self) -> str | None:
        """What of the checkpoint the model does without, in words: an output layer that config.json ties away."""
        if OUTPUT in self._shapes or OUTPUT not in self._files:
            return None
        pairs = itertools.zip_longest(self._rows(OUTPUT), self._rows(INPUT))
        if all(np.array_equal(own, tied) for own, tied in pairs):
            return None
        path, stored = self._files[OUTPUT]
        return (
            f"{path}: {stored} is left out, as transformers leaves it out: it differs from the embeddings, which "
            'config.json makes the output layer. If the model was trained with it, set "tie_word_embeddings": false'
        )

    def _rows(self, name: str) -> Iterator[NDArray[Any]]:
        """A matrix as it is stored, some rows at a time."""
        path, stored = self._files[name]
        with _opened(path) as handle:
            part = handle.get_slice(stored)
            n = part.get_shape()[0]
            for begin in range(0, n, ROWS):
                yield part[begin : min(begin + ROWS, n)]

    @property
    def embedding_factor(self) -> None:
        """None: a looked-up row of `wte.weight` stays as it is."""

    @property
    def n_bytes(self) -> int:
        """Size of all weights as fp32."""
        return 4 * sum(int(np.prod(shape)) for shape in self._shapes.values())


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

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer and its settings are."""
        return self.other_tokenizer or self.folder

    @property
    def is_random(self) -> bool:
        """Whether the weights are noise, so that no quality can be measured."""
        return self.source.startswith(RANDOM)


def model_name(source: str) -> str:
    """What the model is called: the last part of a folder or repository; `random:gpt2` is `random-gpt2`."""
    if source.startswith(RANDOM):
        return source.replace(":", "-")
    name = Path(source).name
    return Path(source).resolve().name if name in ("", "..") else name


def open_checkpoint(
    source: str,
    work: Path,
    *,
    tokenizer: Path | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Open a folder, a hub id (downloaded once, then cached) or `random:SIZE` (written under `work`).

    `tokenizer`: folder whose tokenizer takes the place of the checkpoint's own; `revision`: of a hub repository;
    `allow_pickle`: it has a pytorch_model.bin, which is converted under `work`. Raises
    ValueError or OSError saying what is wrong with which file.
    """
    commit = None
    other_tokenizer = None if source.startswith(RANDOM) else tokenizer
    if other_tokenizer:
        tokenizer_file.read(other_tokenizer)  # whatever is wrong with it is said before a download
    if source.startswith(RANDOM):
        folder = work / "checkpoint"
        random_checkpoint.write(source.removeprefix(RANDOM), folder, tokenizer)
    elif Path(source).exists():
        folder = Path(source)
        check_folder(folder)
    else:
        needs_tokenizer = other_tokenizer is None
        folder = hub.download(source, revision, allow_pickle=allow_pickle, needs_tokenizer=needs_tokenizer)
        commit = folder.name
    if allow_pickle:
        folder = pickle_file.convert(folder, work / "checkpoint")
    config, raw = config_file.read(folder / "config.json")
    if other_tokenizer is None:
        check_tokenizer(folder, raw)
    tokenizer_file.check(other_tokenizer or folder, config.vocab_size)
    tensors = Tensors(folder, config)
    if said := tensors.left_out():
        print(f"      {said}", flush=True)
    return Checkpoint(model_name(source), source, folder, config, raw, tensors, commit, other_tokenizer)


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(path, framework="np") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None
