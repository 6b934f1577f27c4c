"""A file of one tensor and some strings: safetensors, so that other tools open it. Its reader trusts nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from runtime.model.kv_cache import KeysValues

_TENSOR, _DIGEST = "keys_values", "sha256"
_NO_HEADER = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # not JSON, or not of such objects
_MAX_HEADER = 2**24  # bytes; a text of n_positions tokens and its ids are some thousands


class Header(NamedTuple):
    """What a file says of its tensor."""

    about: dict[str, str]
    shape: tuple[int, ...]


def write(path: Path, about: Mapping[str, str], tensor: KeysValues) -> None:
    """Write beside the path and rename: whoever reads it finds the old file or the new one.

    Raises OSError naming the path where that cannot be: for a folder, a device, a place that is missing.
    """
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; name another")
    values = np.ascontiguousarray(tensor, "<f4")
    digest = hashlib.sha256(values.data).hexdigest()
    header = json.dumps(
        {
            "__metadata__": {**about, _DIGEST: digest},
            _TENSOR: {"dtype": "F32", "shape": values.shape, "data_offsets": [0, values.nbytes]},
        }
    ).encode("utf-8")
    header += b" " * (-len(header) % 8)  # values are aligned, as safetensors has them
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(values.data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)


def read_header(file: BinaryIO) -> Header:
    """What stands before the values. Raises ValueError for what `write` did not make, or not to the end."""
    size = os.fstat(file.fileno()).st_size
    n_header = int.from_bytes(file.read(8), "little")
    if not 2 <= n_header <= min(size - 8, _MAX_HEADER):
        raise ValueError("it is no safetensors file, or only the beginning of one")
    try:
        header = _parse(json.loads(file.read(n_header).decode("utf-8")))
    except _NO_HEADER:
        raise ValueError(f"it is no safetensors file of one float32 tensor called {_TENSOR}") from None
    expected = 8 + n_header + 4 * math.prod(header.shape)
    if size != expected:
        raise ValueError(f"it is damaged: it has {size} bytes, not {expected}")
    return header


def _parse(raw: Any) -> Header:
    """The header in a JSON value. Raises one of _NO_HEADER unless it is one."""
    about, tensor = raw["__metadata__"], raw[_TENSOR]
    shape = tuple(tensor["shape"])
    if set(raw) != {"__metadata__", _TENSOR} or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("more tensors than one, or metadata that is no text")
    if tensor["dtype"] != "F32" or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a tensor of another kind")
    if tensor["data_offsets"] != [0, 4 * math.prod(shape)] or _DIGEST not in about:
        raise ValueError("a tensor elsewhere, or without what is said of it")
    return Header(about, shape)


def read_values(file: BinaryIO, header: Header) -> KeysValues:
    """The tensor, read-only; the file is where `read_header` left it. Raises ValueError where it is damaged."""
    data = file.read()
    if hashlib.sha256(data).hexdigest() != header.about[_DIGEST]:
        raise ValueError("it is damaged: its values differ from their checksum")
    values = np.frombuffer(data, "<f4").reshape(header.shape).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    return values
