"""Prompt caching: what prompts have in common at their beginning is computed once, as long as there is room for it.

Prefill ends its passes at multiples of PREFILL_STEP positions, so the keys and values before such a position come from
the same passes whatever follows. Only those are kept, and never those of decoded tokens, which come from other passes.
Every reply is therefore the same with the cache and without it, to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from runtime.model.kv_cache import KeysValues
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP, last_line
from runtime.prefixes.prefix import Prefix

_Ids = tuple[int, ...]


class PromptCache:
    """Keys and values of beginnings of prompts, in blocks of PREFILL_STEP tokens. For one thread.

    A block is found by all ids up to its end. Beyond `max_bytes` the least recently used block goes first. A block is
    always used later than those that follow it, so no block is left without the ones before it.
    """

    def __init__(self, model: Model, max_bytes: int) -> None:
        """`max_bytes`: of keys and values in memory; 0 keeps none.

        A block of GPT-2 124M has 4.7 MB in int8, and 18.9 MB in fp32.
        """
        config = model.config
        values = config.n_layer * 2 * config.n_head * PREFILL_STEP * config.head_dim
        self._model = model
        self._block_bytes = values * np.dtype(np.int8 if model.cache == "int8" else np.float32).itemsize
        self._most = max_bytes // self._block_bytes  # blocks
        self._blocks: OrderedDict[_Ids, KeysValues] = OrderedDict()  # least recently used first

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values that it holds now."""
        return len(self._blocks) * self._block_bytes

    def find(self, ids: Sequence[int]) -> Prefix | None:
        """What is known of the beginning of a prompt; None where nothing is. At least one id is left to predict from.

        Several blocks are copied into one array, which lives as long as the prefix. Where memory is too short for that,
        all blocks are given up.
        """
        chain = self._known_chain(ids, last_line(len(ids) - 1))
        if not chain:
            return None
        self._use(chain)
        blocks = [self._blocks[key] for key in chain]
        try:
            keys_values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=3)
        except MemoryError:
            self.clear()
            return None
        # It has no text and no identity: it never leaves the server, where there is one model.
        return Prefix(self._model, "", chain[-1], keys_values, special_tokens=False, identity="")

    def keep(self, ids: Sequence[int], read: Callable[[int], KeysValues]) -> None:
        """Keep the beginning of a prompt that was prefilled, as far as there is room for it.

        read: returns a copy of the keys and values of the first so many ids. Where memory is too short, all blocks are
        given up.
        """
        end = min(last_line(len(ids)), self._most * PREFILL_STEP)
        chain = [tuple(ids[:at]) for at in range(PREFILL_STEP, end + 1, PREFILL_STEP)]
        known = self._known_chain(ids, end)
        self._use(known)
        try:
            if len(known) < len(chain):
                self._add(chain[len(known) :], read(end))
        except MemoryError:
            self.clear()
            return
        self._use(chain)

    def clear(self) -> None:
        """Give up all blocks."""
        self._blocks.clear()

    def _known_chain(self, ids: Sequence[int], end: int) -> list[_Ids]:
        """The keys of the blocks that are there, from the first without a gap, up to position `end`."""
        chain: list[_Ids] = []
        for at in range(PREFILL_STEP, end + 1, PREFILL_STEP):
            key = tuple(ids[:at])
            if key not in self._blocks:
                break
            chain.append(key)
        return chain

    def _add(self, chain: Sequence[_Ids], keys_values: KeysValues) -> None:
        """Add blocks of one prompt, and give up the least recently used of others."""
        for key in chain:
            while len(self._blocks) >= self._most:
                self._blocks.popitem(last=False)
            block = keys_values[:, :, :, len(key) - PREFILL_STEP : len(key)].copy()
            block.flags.writeable = False
            self._blocks[key] = block

    def _use(self, chain: Sequence[_Ids]) -> None:
        """Mark blocks of one prompt as used, the first of them last."""
        for key in reversed(chain):
            self._blocks.move_to_end(key)
