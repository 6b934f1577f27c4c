"""A safetensors file of one tensor, float32 or int8, and some strings, so that other tools open it.

The reader trusts nothing: every number is bounded before it is used, and the tensor is read only after the header
turned out to describe the rest of the file exactly.
"""

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

_TENSOR = "keys_values"
# safetensors' name of a type -> that of numpy.
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1")}
_DIGEST = "sha256"
# Raised where a header is not JSON, or not of such objects.
_NO_HEADER = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# A text of n_positions tokens and its ids have some thousands of bytes.
_MAX_HEADER_BYTES = 2**24
# A prefix has five: [n_layer, 2, n_head, n_kept, head_dim].
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**31 - 1


class Header(NamedTuple):
    """What a file says of its tensor."""

    about: dict[str, str]  # the metadata
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # little-endian float32, or int8


def write(path: Path, about: Mapping[str, str], tensor: KeysValues) -> None:
    """Write beside the path, then rename: whoever reads the path finds the old file or the new one.

    Raises OSError, naming the path, for a folder, a device, and a place that does not exist.
    """
    # A link at the path stays a link, to the new file.
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; name another")
    kind, dtype = next((kind, dtype) for kind, dtype in _DTYPES.items() if dtype == tensor.dtype)
    values = np.ascontiguousarray(tensor, dtype)
    digest = hashlib.sha256(values.data).hexdigest()
    header = json.dumps(
        {
            "__metadata__": {**about, _DIGEST: digest},
            _TENSOR: {"dtype": kind, "shape": values.shape, "data_offsets": [0, values.nbytes]},
        }
    ).encode("utf-8")
    # The values are aligned, as safetensors has them.
    header += b" " * (-len(header) % 8)
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
    """What stands before the values. Raises ValueError for what `write` did not write, or not completely."""
    size = os.fstat(file.fileno()).st_size
    n_header = int.from_bytes(file.read(8), "little")
    if not 2 <= n_header <= min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError("it is no safetensors file, or only the beginning of one")
    try:
        header = _parse(json.loads(file.read(n_header).decode("utf-8")))
    except _NO_HEADER:
        raise ValueError(f"it is no safetensors file of one float32 or int8 tensor called {_TENSOR}") from None
    expected = 8 + n_header + header.dtype.itemsize * math.prod(header.shape)
    if size != expected:
        raise ValueError(f"it is damaged: it has {size} bytes, not {expected}")
    return header


def _parse(raw: Any) -> Header:
    """The header in a JSON value. Raises one of _NO_HEADER unless it is one."""
    about = raw["__metadata__"]
    tensor = raw[_TENSOR]
    if set(raw) != {"__metadata__", _TENSOR} or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("more tensors than one, or metadata that is no text")
    shape = tuple(tensor["shape"])
    # Before their product: thousands of dimensions of thousands of digits would take minutes to multiply.
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n <= _MAX_DIMENSION for n in shape):
        raise ValueError("a tensor of another shape")
    dtype = _DTYPES[tensor["dtype"]]
    if tensor["data_offsets"] != [0, dtype.itemsize * math.prod(shape)] or _DIGEST not in about:
        raise ValueError("a tensor elsewhere, or without what is said of it")
    return Header(about, shape, dtype)


def read_values(file: BinaryIO, header: Header) -> KeysValues:
    """The tensor, read-only; the file is where `read_header` left it. Raises ValueError where it is damaged."""
    data = file.read()
    if hashlib.sha256(data).hexdigest() != header.about[_DIGEST]:
        raise ValueError("it is damaged: its values differ from their checksum")
    stored = np.frombuffer(data, header.dtype).reshape(header.shape)
    values = stored.astype(header.dtype.newbyteorder("="), copy=False)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    return values
