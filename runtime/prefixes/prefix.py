"""A text that many prompts begin with: what the model makes of it is computed once.

Prefill ends its passes on a grid of absolute positions, so what stands before a line of the grid is computed by the
same passes whatever follows it. A prefix keeps the keys and values up to its last line; what follows is computed with
each prompt. With a prefix and without, every result is therefore the same, to the last bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from runtime._lock import importing
from runtime.errors import ContextLengthError
from runtime.model import prefill as grid
from runtime.model.integrity import CHECKSUMS
from runtime.model.kv_cache import KeysValues
from runtime.model.model import Model
from runtime.model.resolve import ModelOrPath, resolve
from runtime.tokenization.encode import check_fits, encode_prompt

_SHOWN = 24  # characters of each text in an error


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prefix:
    """What `runtime.prefix` returns: immutable, for any number of calls and threads."""

    model: Model
    text: str
    ids: tuple[int, ...]
    keys_values: KeysValues  # [n_layer, 2, n_head, n_kept, head_dim] of the first ids; read-only
    special_tokens: bool
    identity: str  # of the model; see `identify`

    @property
    def n_kept(self) -> int:
        """How many of the ids are not computed again; those after the last line of the grid are."""
        return int(self.keys_values.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of memory, and about as many in a file."""
        return self.keys_values.nbytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `runtime.load_prefix`: the keys and values, and the text as it is.

        The file appears when it is complete. Raises OSError where it cannot be written, ValueError where the prefix's
        model is closed.
        """
        with importing:
            from runtime.prefixes import file as prefix_file  # only where it is used: importing the package stays quick

        prefix_file.save(self, Path(path))

    def check(self, text: str, what: str = "prompt") -> None:
        """Raise ValueError, saying where they part, for a text that does not begin with the prefix's."""
        if text.startswith(self.text):
            return
        n = _n_same(self.text, text)
        own, other = self.text[n : n + _SHOWN], text[n : n + _SHOWN]
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
    n = grid.last_line(len(ids))
    cache = model.new_cache(max(n, 1))
    if n:
        grid.prefill(cache, ids[:n])
    keys_values = cache.read_row(0, n)
    keys_values.flags.writeable = False
    return Prefix(model, text, tuple(ids), keys_values, special_tokens, identify(model.folder))


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
    """The model that a call means; None is the prefix's own where there is one.

    Raises TypeError for what is no Prefix, ValueError for one of another model.
    """
    if prefix is None:
        return resolve(model)
    if not isinstance(prefix, Prefix):
        raise TypeError(f"prefix is {prefix!r}; what runtime.prefix or runtime.load_prefix returns is expected")
    opened = resolve(prefix.model if model is None else model)
    if opened is not prefix.model and identify(opened.folder) != prefix.identity:
        raise ValueError(
            f"the prefix is of another model: {prefix.model.folder}, not {opened.folder}; leave model out, or make the "
            "prefix with this model"
        )
    return opened


def known(prefix: Prefix | None, ids: Sequence[int]) -> KeysValues | None:
    """Keys and values of the ids that a prompt has in common with the prefix, up to a line of the grid.

    At the seam a prompt may have other ids than the prefix alone. One id at least is left to predict from.
    """
    if prefix is None:
        return None
    n = min(_n_same(prefix.ids, ids), len(ids) - 1)
    return prefix.keys_values[:, :, :, : grid.last_line(n)]


def _n_same(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (own, other) in pairs if own != other), min(len(first), len(second)))


def identify(folder: Path) -> str:
    """SHA-256 that tells models, precisions and tokenizers apart: of SHA256SUMS, or of all files of a plain export."""
    sums = folder / CHECKSUMS
    if sums.is_file():
        return hashlib.sha256(sums.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix == ".json" or ".onnx" in path.name):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
