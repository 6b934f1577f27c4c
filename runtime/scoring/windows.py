"""Windows over texts of any length, and the passes through the model that score them. Short windows share a pass."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from runtime.model.kv_cache import InPlaceCache, Logits
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP, cut

# Positions of one pass, padding included, and bytes of its logits. Each token of a larger pass takes longer: its logits
# leave the processor's cache before they are read, and the system provides their memory anew for every pass.
PASS_SIZE = 160
PASS_BYTES = 20 << 20
# Texts that are sorted into passes together. More would sort more evenly and take more memory.
TEXTS_TOGETHER = 128
# Positions whose logits are handed on together, so that what is computed from them stays in the processor's cache.
BLOCK = 16


class Window(NamedTuple):
    """Inputs begin .. end. Of their predictions the last `n_new` are made by no earlier window."""

    begin: int
    end: int
    n_new: int


def windows(n: int, size: int, stride: int, *, full: bool = False) -> Iterator[Window]:
    """Windows of up to `size` inputs that begin every `stride` inputs, until `n` inputs are covered.

    full: the last window reaches back to `size` inputs, so that what it predicts has as much context as there is.

    >>> list(windows(7, 4, 2))
    [Window(begin=0, end=4, n_new=4), Window(begin=2, end=6, n_new=2), Window(begin=4, end=7, n_new=1)]
    >>> list(windows(7, 4, 4, full=True))
    [Window(begin=0, end=4, n_new=4), Window(begin=3, end=7, n_new=3)]
    """
    begin = 0
    covered = 0
    while covered < n:
        end = min(begin + size, n)
        yield Window(max(0, end - size) if full else begin, end, end - covered)
        covered = end
        begin += stride


def check_stride(stride: int | None, n_positions: int, default: int | None = None) -> int:
    """The stride; None is `default`, or n_positions. Raises TypeError or ValueError for one that is not allowed."""
    if stride is None:
        return n_positions if default is None else default
    if isinstance(stride, bool) or not isinstance(stride, numbers.Integral):
        raise TypeError(f"stride is {stride!r}; a whole number is expected")
    if not 1 <= stride <= n_positions:
        raise ValueError(f"stride is {stride}; it must be from 1 to n_positions, {n_positions}")
    return int(stride)


class Request(NamedTuple):
    """Inputs of one window, at most n_positions, and the first of them whose prediction is wanted."""

    ids: Sequence[int]
    first: int


class Block(NamedTuple):
    """Logits [n, n_vocab] after the inputs begin .. begin + n of one of the requests, by its index.

    With `hidden`, these are the hidden states [n, n_embd] at the inputs.
    """

    request: int
    begin: int
    logits: Logits


def run(model: Model, requests: Sequence[Request], *, hidden: bool = False) -> Iterator[Block]:
    """The wanted logits of every request, a block at a time; the blocks of one request come in their order.

    hidden: the hidden states of the last layer in place of logits.

    Requests of up to PREFILL_STEP inputs share passes, sorted by length. The others take a pass for every PREFILL_STEP
    inputs. How a request is run depends on the request alone, and the rows of a pass do not depend on each other, so
    every result is the one that the request has alone, to the last bit.
    A block is valid until the next one is asked for, and may be overwritten.
    """
    shared = [index for index, request in enumerate(requests) if _may_share(model, request)]
    shared.sort(key=lambda index: len(requests[index].ids))
    most = PASS_SIZE if hidden else pass_size(model.config.vocab_size)
    for group in groups([len(request.ids) for request in requests], shared, most):
        yield from _run_together(model, requests, group, hidden=hidden)
    for index, request in enumerate(requests):
        if not _may_share(model, request):
            yield from _run_alone(model, index, request, hidden=hidden)


def pass_size(n_vocab: int) -> int:
    """How many positions share a pass; a longer request takes a pass by itself.

    >>> pass_size(50257)
    104
    """
    return min(PASS_SIZE, max(1, PASS_BYTES // (4 * n_vocab)))


def _may_share(model: Model, request: Request) -> bool:
    # The graph of a plain export decodes one row at a time.
    return model.is_fused and len(request.ids) <= PREFILL_STEP


def padded(n: int) -> int:
    """An even number of positions: some kernels compute the last row of an odd number of rows differently."""
    return n + n % 2


def groups(lengths: Sequence[int], order: Sequence[int], most: int = PASS_SIZE) -> Iterator[list[int]]:
    """Rows of these lengths, in an order from short to long, in groups of up to `most` positions each."""
    group: list[int] = []
    for index in order:
        # The newest row is the longest of its group, and the others are padded to its length.
        if group and (len(group) + 1) * padded(lengths[index]) > most:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _run_together(model: Model, requests: Sequence[Request], group: Sequence[int], *, hidden: bool) -> Iterator[Block]:
    length = padded(max(len(requests[index].ids) for index in group))
    keep = padded(length - min(requests[index].first for index in group))
    cache = cast(InPlaceCache, model.new_cache(length, len(group), hidden=hidden))
    logits = cache.begin_rows([requests[index].ids for index in group], keep=keep)
    n_skipped = length - keep
    for row, index in enumerate(group):
        ids, first = requests[index]
        yield from _blocks(index, first, logits[row, first - n_skipped : len(ids) - n_skipped])


def _run_alone(model: Model, index: int, request: Request, *, hidden: bool) -> Iterator[Block]:
    cache = model.new_cache(len(request.ids), hidden=hidden)
    end = 0
    for chunk in cut(request.ids):
        end += len(chunk)
        n_wanted = min(len(chunk), end - request.first)
        if n_wanted < 1:
            cache.extend(chunk)
        else:
            yield from _blocks(index, end - n_wanted, cache.extend(chunk, keep=n_wanted))


def _blocks(index: int, begin: int, logits: Logits) -> Iterator[Block]:
    for at in range(0, len(logits), BLOCK):
        yield Block(index, begin + at, logits[at : at + BLOCK])
