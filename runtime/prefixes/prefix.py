"""A text that many prompts begin with, whose keys and values are computed once.

Chunked prefill ends its passes at multiples of PREFILL_STEP positions, so the keys and values before such a position
come from the same passes whatever follows. A prefix keeps the keys and values up to the last such position of its
text; the tokens after it are computed with each prompt. Every result is therefore the same with a prefix and without
one, to the last bit.

A prefix in a file is only used where the same model, the same onnxruntime and a processor of the same kind would
compute the same bits: otherwise results with the prefix would differ from those without it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from runtime.errors import ContextLengthError, PrefixFileError
from runtime.model.kv_cache import KeysValues
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP, last_line, prefill
from runtime.model.resolve import ModelOrPath, resolve
from runtime.prefixes.file import Header, read_header, read_values, write
from runtime.tokenization.encode import check_fits, encode_prompt

FORMAT = "gpt2-edge prefix 1"
# characters of each text in an error
_SHOWN = 24
# ids of the pass whose logits have to be the same on the machine that made the file
_N_PROBE = 16
# characters of what a file says, in an error
_MAX_FOUND = 80
_DIFFERENCES = {
    "format": "its format is {found!r}, and this runtime reads {own!r}",
    "model": "it is of another model, or another build or precision of it: {found:.12}, not {own:.12}",
    "special_tokens": "it says {found!r} of special_tokens",
    "ids": "its text has other ids by this model's tokenizer",
    "prefill_step": "it was computed {found} tokens a pass, and this runtime takes {own}",
    "onnxruntime": "it was computed by onnxruntime {found}, and this is {own}",
    "probe": "its machine does not compute the same bits as this one, by another processor, say",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prefix:
    """What `runtime.prefix` returns: immutable, for any number of calls and threads."""

    model: Model
    text: str
    ids: tuple[int, ...]
    keys_values: KeysValues  # [n_layer, 2, n_head, n_kept, head_dim] of the first ids; read-only
    special_tokens: bool
    identity: str  # of the model that was loaded; see `Model.identity`

    @property
    def n_kept(self) -> int:
        """How many of the ids are not computed again: those up to the last multiple of PREFILL_STEP."""
        return int(self.keys_values.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the keys and values take, and about as many in a file."""
        return self.keys_values.nbytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `runtime.load_prefix`: the keys and values, and the text, which is not encrypted.

        The file appears at the path when it is complete. Raises OSError where it cannot be written, ValueError where
        the prefix's model is closed.

            runtime.prefix("Once upon a time").save("story.prefix")
        """
        about = _about(self) | {"text": self.text, "probe": _probe(self)}
        write(Path(path), about, self.keys_values)

    def check(self, text: str, what: str = "prompt") -> None:
        """Raise ValueError for a text that does not begin with the prefix's, saying where the two differ first."""
        if text.startswith(self.text):
            return
        n = _n_same(self.text, text)
        own = self.text[n : n + _SHOWN]
        other = text[n : n + _SHOWN]
        found = f"has {other!r}" if other else "ends"
        raise ValueError(
            f"the {what} does not begin with the prefix's text: at character {n} the prefix has {own!r} and the {what} "
            f"{found}; give the {what} as a whole, prefix included"
        )

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        size = f"{len(self.ids)} tokens, {self.n_kept} kept, {self.nbytes / 1e6:.1f} MB"
        return f"<Prefix {text!r}: {size}, {self.model.folder}>"


def make(model: Model, text: str, special_tokens: bool = False) -> Prefix:
    """See `runtime.prefix`."""
    ids = encode_prefix(model, text, special_tokens)
    n = last_line(len(ids))
    cache = model.new_cache(max(n, 1))
    if n:
        prefill(cache, ids[:n])
    keys_values = cache.read_row(0, n)
    keys_values.flags.writeable = False
    return Prefix(model, text, tuple(ids), keys_values, special_tokens, model.identity)


def encode_prefix(model: Model, text: str, special_tokens: bool) -> list[int]:
    """Ids of a prefix's text. Raises TypeError or ValueError where there are none, or too many."""
    if not isinstance(special_tokens, bool):
        raise TypeError(f"special_tokens is {special_tokens!r}; True or False is expected")
    size = model.config.n_positions
    check_fits(model, text, size)
    if not text:
        raise ValueError("the text is empty; a prefix needs one")
    ids = encode_prompt(model, text, special_tokens=special_tokens)
    if len(ids) > size:
        told = f"the text is {len(ids)} tokens, more than the model's {size} positions; shorten it"
        raise ContextLengthError(told, len(ids), n_positions=size)
    return ids


def open_model(model: ModelOrPath, prefix: Prefix | None) -> Model:
    """The model that a call means; None is the model of the prefix where there is one.

    Raises TypeError for what is no Prefix, ValueError for the prefix of another model.
    """
    if prefix is None:
        return resolve(model)
    if not isinstance(prefix, Prefix):
        raise TypeError(f"prefix is {prefix!r}; what runtime.prefix or runtime.load_prefix returns is expected")
    opened = resolve(prefix.model if model is None else model)
    if opened is not prefix.model and opened.identity != prefix.identity:
        raise ValueError(
            f"the prefix is of another model: {prefix.model.folder}, not {opened.folder}; leave model out, or make the "
            "prefix with this model"
        )
    return opened


def known(prefix: Prefix | None, ids: Sequence[int]) -> KeysValues | None:
    """Keys and values of the ids that a prompt has in common with the prefix, up to a multiple of PREFILL_STEP.

    Where the text of the prefix ends, the prompt may have other ids than the prefix has alone. At least one id is left
    to predict from.
    """
    if prefix is None:
        return None
    n = min(_n_same(prefix.ids, ids), len(ids) - 1)
    return prefix.keys_values[:, :, :, : last_line(n)]


def _n_same(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (own, other) in pairs if own != other), min(len(first), len(second)))


# in a file ------------------------------------------------------------------------------------------------------------


def load(model: Model, path: Path) -> Prefix:
    """See `runtime.load_prefix`."""
    with path.open("rb") as opened:
        try:
            header = read_header(opened)
            prefix = _prefix_of(model, header)
            keys_values = read_values(opened, header)
        except ValueError as error:
            raise PrefixFileError(f"{path}: {error}; make the prefix again, with runtime.prefix") from None
    return dataclasses.replace(prefix, keys_values=keys_values)


def _prefix_of(model: Model, header: Header) -> Prefix:
    """The prefix that a header describes, without its values yet.

    Raises ValueError unless it was made with this model, on a machine that computes the same.
    """
    about = header.about
    config = model.config
    if missing := {"text", *_DIFFERENCES} - about.keys():
        raise ValueError(f"it is not the file of a prefix: it says no {min(missing)}")
    special_tokens = about["special_tokens"] == "true"
    ids = encode_prefix(model, about["text"], special_tokens)
    shape = (config.n_layer, 2, config.n_head, last_line(len(ids)), config.head_dim)
    prefix = Prefix(model, about["text"], tuple(ids), np.empty(0, np.float32), special_tokens, model.identity)
    for name, own in _about(prefix).items():
        _compare(name, about[name], own)
    if header.shape != shape:
        raise ValueError(f"its tensor is {list(header.shape)}, not {list(shape)}")
    _compare("probe", about["probe"], _probe(prefix))
    return prefix


def _about(prefix: Prefix) -> dict[str, str]:
    """What has to be the same where a file is saved and where it is loaded."""
    return {
        "format": FORMAT,
        "model": prefix.identity,
        "special_tokens": json.dumps(prefix.special_tokens),
        "ids": json.dumps(prefix.ids),
        "prefill_step": str(PREFILL_STEP),
        "onnxruntime": onnxruntime.__version__,
    }


def _compare(name: str, found: str, own: str) -> None:
    if found != own:
        raise ValueError(_DIFFERENCES[name].format(found=found[:_MAX_FOUND], own=own))


def _probe(prefix: Prefix) -> str:
    """SHA-256 of the logits of a short pass: kernels for another kind of processor round differently."""
    ids = prefix.ids[:_N_PROBE]
    logits = prefix.model.new_cache(len(ids)).extend(ids, keep=len(ids))
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").data).hexdigest()
