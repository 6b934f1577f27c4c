"""Prefixes on disk. A file serves only where it was made or where the same computation gives the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.errors import PrefixFileError
from runtime.model import prefill as grid
from runtime.model.model import Model
from runtime.prefixes import tensor_file
from runtime.prefixes.prefix import Prefix, encode_prefix, identify

FORMAT = "gpt2-edge prefix 1"
_N_PROBE = 16  # ids of the pass whose logits have to be those of the machine that made the file
_DIFFERENCES = {
    "format": "its format is {found!r}, and this runtime reads {own!r}",
    "model": "it is of another model, or another build or precision of it: {found:.12}, not {own:.12}",
    "special_tokens": "it says {found!r} of special_tokens",
    "ids": "its text has other ids by this model's tokenizer",
    "prefill_step": "it was computed {found} tokens a pass, and this runtime takes {own}",
    "onnxruntime": "it was computed by onnxruntime {found}, and this is {own}",
    "probe": "its machine does not compute the same bits as this one, by another processor, say",
}


def save(prefix: Prefix, path: Path) -> None:
    """See `Prefix.save`."""
    about = _about(prefix) | {"text": prefix.text, "probe": _probe(prefix)}
    tensor_file.write(path, about, prefix.keys_values)


def load(model: Model, path: Path) -> Prefix:
    """See `runtime.load_prefix`."""
    with path.open("rb") as file:
        try:
            header = tensor_file.read_header(file)
            prefix = _prefix_of(model, header)
            keys_values = tensor_file.read_values(file, header)
        except ValueError as error:
            raise PrefixFileError(f"{path}: {error}; make the prefix again, with runtime.prefix") from None
    return dataclasses.replace(prefix, keys_values=keys_values)


def _prefix_of(model: Model, header: tensor_file.Header) -> Prefix:
    """What a header is of, still without values. Raises ValueError unless it is of this model on this machine."""
    about, config = header.about, model.config
    if missing := {"text", *_DIFFERENCES} - about.keys():
        raise ValueError(f"it is not the file of a prefix: it says no {min(missing)}")
    special_tokens = about["special_tokens"] == "true"
    ids = encode_prefix(model, about["text"], special_tokens)
    shape = (config.n_layer, 2, config.n_head, grid.last_line(len(ids)), config.head_dim)
    identity = identify(model.folder)
    prefix = Prefix(model, about["text"], tuple(ids), np.empty(0, np.float32), special_tokens, identity)
    for name, own in _about(prefix).items():
        _compare(name, about[name], own)
    if header.shape != shape:
        raise ValueError(f"its tensor is {list(header.shape)}, not {list(shape)}")
    _compare("probe", about["probe"], _probe(prefix))
    return prefix


def _about(prefix: Prefix) -> dict[str, str]:
    """What has to be the same where a file is loaded."""
    return {
        "format": FORMAT,
        "model": prefix.identity,
        "special_tokens": json.dumps(prefix.special_tokens),
        "ids": json.dumps(prefix.ids),
        "prefill_step": str(grid.PREFILL_STEP),
        "onnxruntime": onnxruntime.__version__,
    }


def _compare(name: str, found: str, own: str) -> None:
    if found != own:
        raise ValueError(_DIFFERENCES[name].format(found=found, own=own))


def _probe(prefix: Prefix) -> str:
    """SHA-256 of the logits of a short pass: the kernels for another processor round otherwise."""
    ids = prefix.ids[:_N_PROBE]
    logits = prefix.model.new_cache(len(ids)).extend(ids, keep=len(ids))
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").data).hexdigest()
