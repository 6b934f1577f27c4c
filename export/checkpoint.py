"""A GPT-2 checkpoint: a folder, a hub id or `random:SIZE` becomes config, tensors read one at a time, and tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from export import config as config_file
from export import hub, random_checkpoint
from export.config import Config

RANDOM = "random:"
# stored by older versions of transformers, or for other tasks, and no part of the language model
_UNUSED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|multiple_choice_head\..*")


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
                    plain = name.removeprefix("transformer.")
                    self._files[plain] = path, name
                    shapes[plain] = tuple(handle.get_slice(name).get_shape())
        self._check(folder, shapes, tied=config.tie_word_embeddings)

    def _check(self, folder: Path, found: dict[str, tuple[int, ...]], *, tied: bool) -> None:
        for name, shape in self._shapes.items():
            if name not in found:
                raise ValueError(f"{folder}: the weights have no tensor {name!r}, which config.json asks for")
            if found[name] != shape:
                path = self._files[name][0]
                raise ValueError(f"{path}: {name} is {list(found[name])}, but config.json makes it {list(shape)}")
        ignored = {"lm_head.weight"} if tied else set[str]()
        unknown = [n for n in found if n not in self._shapes and n not in ignored and not _UNUSED.fullmatch(n)]
        if unknown:
            listed = ", ".join(sorted(unknown)[:5])
            raise ValueError(f"{folder}: tensors that are no part of GPT-2 would be lost: {listed}")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The tensor as fp32, whatever it is stored as. Raises ValueError if it holds NaN or infinity."""
        path, stored = self._files[name]
        with _opened(path) as handle:
            array: NDArray[np.float32] = handle.get_tensor(stored).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {stored} holds NaN or infinity; the checkpoint is damaged")
        return array

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

    @property
    def is_random(self) -> bool:
        """Whether the weights are noise, so that no quality can be measured."""
        return self.source.startswith(RANDOM)


def model_name(source: str) -> str:
    """What the model is called: the last part of a folder or repository; `random:gpt2` is `random-gpt2`."""
    if source.startswith(RANDOM):
        return source.replace(":", "-")
    return Path(source).resolve().name if Path(source).is_dir() else source.rstrip("/").split("/")[-1]


def open_checkpoint(source: str, work: Path, *, tokenizer: Path | None = None) -> Checkpoint:
    """Open a folder, a hub id (downloaded once, then cached) or `random:SIZE` (written under `work`).

    `tokenizer`: folder whose tokenizer.json a random checkpoint takes. Raises ValueError or OSError saying what
    is wrong with which file.
    """
    if source.startswith(RANDOM):
        folder = work / "checkpoint"
        random_checkpoint.write(source.removeprefix(RANDOM), folder, tokenizer)
    else:
        folder = Path(source) if Path(source).is_dir() else hub.download(source)
    config, raw = config_file.read(folder / "config.json")
    check_tokenizer(folder / "tokenizer.json", config.vocab_size)
    return Checkpoint(model_name(source), source, folder, config, raw, Tensors(folder, config))


def check_tokenizer(path: Path, vocab_size: int) -> None:
    """Raise FileNotFoundError or ValueError unless this is a tokenizer whose ids lie within the vocabulary."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        largest = max(Tokenizer.from_file(str(path)).get_vocab().values(), default=-1)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    if largest >= vocab_size:
        raise ValueError(f"{path} has token id {largest}, but config.json has vocab_size {vocab_size}")


def weight_files(folder: Path) -> Iterable[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or the shards its index names."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickle = " (pytorch_model.bin is a pickle and is not read)" if (folder / "pytorch_model.bin").exists() else ""
        raise FileNotFoundError(f"{single} is missing{pickle}; save the model with transformers' save_pretrained")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(missing)}")
    return [folder / name for name in names]


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(path, framework="np") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None
