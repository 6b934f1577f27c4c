"""The weights of a checkpoint: find their files, read one tensor at a time, and write them."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from export.checkpoint.diagnosis import describe_strays
from export.json_file import write_json
from runtime.graph.architecture import GPT

if TYPE_CHECKING:
    from export.checkpoint.config import Config

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
INPUT = "wte.weight"
"""The token embeddings, which are also the output layer if config.json ties the two."""
OUTPUT = "lm_head.weight"
"""The output layer, if it is a matrix of its own."""
SHARD_BYTES = 1_000_000_000
"""The size of a file of weights that is written; no more than this is in memory at a time."""
# How many rows of two matrices are compared at a time.
_ROWS = 4096
# Tensors that older versions of transformers store, and that hold no weights.
_UNUSED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|position_ids")
# Names of the embeddings in a GPT, and ours.
GPT_NAMES = {"tokens_embed.weight": INPUT, "positions_embed.weight": "wpe.weight"}
_FLOATS = ("F16", "BF16", "F32", "F64")
CURE = (
    "is a pickle, which is not read. With transformers and torch installed, this writes safetensors: python -c "
    "\"from transformers import GPT2LMHeadModel as M; M.from_pretrained('{name}').save_pretrained('DIR')\"; "
    "or --allow-pickle reads it, its tensors only, with torch"
)


def weight_files(folder: Path) -> Iterable[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or the shards its index names.

    Raises FileNotFoundError, saying what to do, if some are missing; ValueError for a damaged index.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        if pickles := sorted(folder.glob(f"{Path(PICKLE).stem}*.bin")):
            raise FileNotFoundError(f"{pickles[0]} {CURE.format(name=folder)}")
        raise FileNotFoundError(f"{folder / SINGLE} is missing; transformers' save_pretrained writes one")
    return _shards(folder / INDEX)


def pickle_files(folder: Path) -> list[Path]:
    """The pickles of a checkpoint: `pytorch_model.bin`, or the shards its index names. Raises as `weight_files`."""
    if (folder / PICKLE).is_file():
        return [folder / PICKLE]
    if not (folder / PICKLE_INDEX).is_file():
        raise FileNotFoundError(f"{folder / PICKLE} is missing; --allow-pickle reads that file")
    return _shards(folder / PICKLE_INDEX)


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(missing)}")
    return [index.parent / name for name in names]


def shard_names(index: Path) -> list[str]:
    """The files that an index names. Raises ValueError for one that is damaged, or names files of other folders."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of files with weights: {error!r}") from None
    if outside or not names:
        raise ValueError(f"{index} is not an index of files with weights: it names {', '.join(outside) or 'none'}")
    return names


class Tensors:
    """The tensors in a checkpoint's memory-mapped safetensors files: each is in memory only while it is used."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Check names, shapes and files against the config; no weight is read.

        Raises FileNotFoundError for missing weights, ValueError naming file and tensor for wrong ones.
        """
        # Our name of each tensor -> its file, and its name there.
        self._files: dict[str, tuple[Path, str]] = {}
        self._shapes = config.tensor_shapes()
        names = GPT_NAMES if config.model_type == GPT else {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            with _opened(path) as handle:
                for name in handle.keys():  # noqa: SIM118  not a dict
                    plain = name.removeprefix("transformer.")
                    plain = names.get(plain, plain)
                    part = handle.get_slice(name)
                    self._check_entry(plain, path, name, part.get_dtype())
                    self._files[plain] = path, name
                    shapes[plain] = tuple(part.get_shape())
        if config.tie_word_embeddings and INPUT not in shapes and OUTPUT in shapes:
            # The two are one matrix, which was stored under the other name.
            self._files[INPUT] = self._files.pop(OUTPUT)
            shapes[INPUT] = shapes.pop(OUTPUT)
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
            heads = describe_strays(unknown)
            raise ValueError(f"{folder}: tensors that are no part of GPT-2 would be lost: {listed}{heads}")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """The tensor, converted to fp32. Raises ValueError if it holds NaN or infinity."""
        path, stored = self._files[name]
        # Without warnings: a float64 that overflows becomes infinity, which is an error below.
        with _opened(path) as handle, np.errstate(over="ignore"):
            array: NDArray[np.float32] = handle.get_tensor(stored).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {stored} holds NaN or infinity; the checkpoint is damaged")
        return array

    def left_out(self) -> str | None:
        """A message about an output layer that config.json says not to use; None if there is none, or it is equal."""
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
        """The rows of a stored matrix, `_ROWS` at a time."""
        path, stored = self._files[name]
        with _opened(path) as handle:
            part = handle.get_slice(stored)
            n = part.get_shape()[0]
            for begin in range(0, n, _ROWS):
                yield part[begin : min(begin + _ROWS, n)]

    @property
    def embedding_factor(self) -> None:
        """None: rows of `wte.weight` are not scaled after their lookup, see `Weights`."""

    @property
    def hidden_factor(self) -> None:
        """None: the output layer reads the hidden states as they are, see `Weights`."""


def write_weights(tensors: Iterable[tuple[str, NDArray[Any]]], folder: Path) -> None:
    """Write safetensors in transformers' layout: one file, or shards of about `SHARD_BYTES` with an index.

    tensors: by our names, such as `h.0.attn.c_attn.weight`. One shard at a time is in memory.
    """
    shard: dict[str, NDArray[Any]] = {}
    index: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        shard[name if name == OUTPUT else f"transformer.{name}"] = np.ascontiguousarray(tensor)
        if sum(one.nbytes for one in shard.values()) >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    if len(set(index.values())) == 1:
        (folder / "model-00001.safetensors").rename(folder / SINGLE)
    else:
        write_json(folder / INDEX, {"metadata": {}, "weight_map": index})


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    try:
        with safe_open(path, framework="np") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from None
