"""Read weights in pickles (`pytorch_model.bin`, its shards, `ckpt.pt`) with torch, without running code in them."""

from __future__ import annotations

import errno
import importlib.util
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.checkpoint.weights import INDEX, PICKLE, SINGLE, pickle_files

MISSING = "--allow-pickle needs torch, which is not installed: pip install -e '.[export]'"
NOT_NEEDED = "{name} has safetensors; leave --allow-pickle out, which is for a checkpoint that has only a {pickle}"
_KEPT = (".json", ".txt", ".jinja", ".model")


def check_installed() -> None:
    """Raise ModuleNotFoundError, saying which extra to install, unless torch can be imported."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(MISSING)


def convert(folder: Path, target: Path) -> Path:
    """Write the same checkpoint with safetensors to `target`; returns `target`.

    torch reads tensors only (`weights_only`): a pickle that would run code is refused, and its code does not run.
    Raises ValueError for such a pickle, for a damaged file, and for a checkpoint that has safetensors;
    FileNotFoundError if `pytorch_model.bin` and its shards are missing.
    """
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        raise ValueError(NOT_NEEDED.format(name=folder, pickle=PICKLE))
    tensors = _read_all(pickle_files(folder))
    target.mkdir()
    copy_small_files(folder, target)
    _write(tensors, target / SINGLE)
    return target


def copy_small_files(folder: Path, target: Path) -> None:
    """Copy the files of a checkpoint other than its weights: config, tokenizer, settings, texts."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix in _KEPT and path.name != INDEX:
            shutil.copyfile(path, target / path.name)


def load(path: Path) -> Any:
    """Load a file of torch: tensors, numbers and strings in dictionaries and lists.

    Nothing in the file is executed. Raises ValueError for a damaged file, and for one that holds other objects.
    """
    # Imported here, since it takes a second.
    import torch

    try:
        with warnings.catch_warnings():
            # what torch warns about is refused, or read well
            warnings.simplefilter("ignore")
            # the format before torch 1.6 is no zip file and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        # a truncated zip file is an invalid argument to torch; other errors of the system are not the file's
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged, or holds more than tensors, and is not read: {reason}") from None


def load_tensors(path: Path) -> dict[str, Any]:
    """A dictionary of torch's tensors. Raises ValueError as `load`, and for a file that holds something else."""
    import torch

    read = load(path)
    if not isinstance(read, dict) or not all(isinstance(value, torch.Tensor) for value in read.values()):
        raise ValueError(f"{path} is not a checkpoint: a dictionary of tensors is expected")
    return dict(read)


def _read_all(paths: Sequence[Path]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for path in paths:
        read = load_tensors(path)
        if twice := sorted(tensors.keys() & read.keys()):
            raise ValueError(f"{path}: {twice[0]} is stored a second time; another file of {path.parent} has it too")
        tensors |= read
    return tensors


def _write(tensors: dict[str, Any], path: Path) -> None:
    """Tensors that share memory, like tied weights, are written once each: safetensors has no sharing."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.detach().clone() if address in seen else tensor.detach().contiguous()
        seen.add(address)
    save_file(tensors, path, metadata={"format": "pt"})
