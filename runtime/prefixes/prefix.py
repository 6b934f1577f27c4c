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

from runtime._checks import Prompt, check_ids
from runtime.errors import ContextLengthError, PrefixFileError
from runtime.graph.attention import DTYPES
from runtime.model.kv_cache import KeysValues
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP, last_line, prefill
from runtime.model.resolve import ModelOrPath, resolve
from runtime.prefixes.file import Header, read_header, read_values, write
from runtime.tokenization.encode import check_fits, encode_prompt, ids_of_prompt

FORMAT = "gpt2-edge prefix 2"
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
    "cache": "its keys and values are {found}, and this model was loaded with cache={own!r}",
    "prefill_step": "it was computed {found} tokens a pass, and this runtime takes {own}",
    "onnxruntime": "it was computed by onnxruntime {found}, and this is {own}",
    "probe": "its machine does not compute the same bits as this one, by another processor, say",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prefix:
    """What `runtime.prefix` returns: immutable, for any number of calls and threads."""

    model: Model
    text: str | None  # None where token ids were given
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
        """Write a file for `runtime.load_prefix`: the keys and values, and text and ids, which are not encrypted.

        The file appears at the path when it is complete. Raises OSError where it cannot be written, ValueError where
        the prefix's model is closed.

            runtime.prefix("Once upon a time").save("story.prefix")
        """
        about = _about(self) | {"probe": _probe(self)}
        if self.text is not None:
            about["text"] = self.text
        write(Path(path), about, self.keys_values)

    def check(self, prompt: Prompt, what: str = "prompt") -> None:
        """Raise ValueError for a prompt that does not begin with the prefix, saying where the two differ first.

        Texts are compared as such. Where one of the two is token ids, ids are compared, all of the prefix's.
        """
        if self.text is not None and isinstance(prompt, str):
            self._check_text(self.text, prompt, what)
        else:
            self._check_ids(ids_of_prompt(self.model, prompt, special_tokens=self.special_tokens), what)

    def _check_ids(self, ids: Sequence[int], what: str) -> None:
        n = _n_same(self.ids, ids)
        if n == len(self.ids):
            return
        found = f"has {ids[n]}" if n < len(ids) else "ends"
        raise ValueError(
            f"the {what} does not begin with the prefix's token ids: at index {n} the prefix has {self.ids[n]} and the "
            f"{what} {found}; give the {what} as a whole, [*prefix.ids, *more]"
        )

    def _check_text(self, prefix: str, text: str, what: str) -> None:
        if text.startswith(prefix):
            return
        n = _n_same(prefix, text)
        own = prefix[n : n + _SHOWN]
        other = text[n : n + _SHOWN]
        found = f"has {other!r}" if other else "ends"
        raise ValueError(
            f"the {what} does not begin with the prefix's text: at character {n} the prefix has {own!r} and the {what} "
            f"{found}; give the {what} as a whole, prefix included"
        )

    def __repr__(self) -> str:
        what = "of ids" if self.text is None else repr(_cut(self.text))
        size = f"{len(self.ids)} tokens, {self.n_kept} kept, {self.nbytes / 1e6:.1f} MB"
        return f"<Prefix {what}: {size}, {self.model.folder}>"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def make(model: Model, prompt: Prompt, special_tokens: bool = False) -> Prefix:
    """See `runtime.prefix`."""
    if isinstance(prompt, str):
        ids = encode_prefix(model, prompt, special_tokens)
    else:
        ids = prompt
        _check_length(model, ids)
    n = last_line(len(ids))
    cache = model.new_cache(max(n, 1))
    if n:
        prefill(cache, ids[:n])
    keys_values = cache.read_row(0, n)
    keys_values.flags.writeable = False
    text = prompt if isinstance(prompt, str) else None
    return Prefix(model, text, tuple(ids), keys_values, special_tokens, model.identity)


def encode_prefix(model: Model, text: str, special_tokens: bool) -> list[int]:
    """Ids of a prefix's text. Raises TypeError or ValueError where there are none, or too many."""
    check_fits(model, text, model.config.n_positions)
    if not text:
        raise ValueError("the text is empty; a prefix needs one")
    ids = encode_prompt(model, text, special_tokens=special_tokens)
    _check_length(model, ids)
    return ids


def _check_length(model: Model, ids: Sequence[int]) -> None:
    size = model.config.n_positions
    if len(ids) > size:
        told = f"the text is {len(ids)} tokens, more than the model's {size} positions; shorten it"
        raise ContextLengthError(told, len(ids), n_positions=size)


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
    if opened.cache != prefix.model.cache:
        raise ValueError(
            f"the keys and values of the prefix are {prefix.model.cache}, and the model was loaded with "
            f"cache={opened.cache!r}; leave model out, or make the prefix with this model"
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
    if missing := _DIFFERENCES.keys() - about.keys():
        raise ValueError(f"it is not the file of a prefix: it says no {min(missing)}")
    special_tokens = about["special_tokens"] == "true"
    # A prefix that was made of ids has no text.
    text = about.get("text")
    ids = _read_ids(model, about["ids"]) if text is None else encode_prefix(model, text, special_tokens)
    shape = (config.n_layer, 2, config.n_head, last_line(len(ids)), config.head_dim)
    prefix = Prefix(model, text, tuple(ids), np.empty(0, np.float32), special_tokens, model.identity)
    for name, own in _about(prefix).items():
        _compare(name, about[name], own)
    if header.shape != shape:
        raise ValueError(f"its tensor is {list(header.shape)}, not {list(shape)}")
    if header.dtype != DTYPES[model.cache]:
        raise ValueError(f"its tensor is {header.dtype}, and says that it is {model.cache}")
    _compare("probe", about["probe"], _probe(prefix))
    return prefix


def _read_ids(model: Model, written: str) -> list[int]:
    """The ids that a file states. Raises ValueError for what is no list of ids of the model's, as many as it takes."""
    try:
        ids = check_ids("ids", json.loads(written), model.config.vocab_size)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("its ids are not those of a text by this model") from None
    if not ids:
        raise ValueError("it has no ids")
    _check_length(model, ids)
    return ids


def _about(prefix: Prefix) -> dict[str, str]:
    """What has to be the same where a file is saved and where it is loaded."""
    return {
        "format": FORMAT,
        "model": prefix.identity,
        "special_tokens": json.dumps(prefix.special_tokens),
        "ids": json.dumps(prefix.ids),
        "cache": prefix.model.cache,
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
