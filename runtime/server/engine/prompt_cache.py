"""Prompt caching: what prompts have in common at their beginning is computed once, as long as there is room for it.

Prefill ends its passes at multiples of PREFILL_STEP positions, so the keys and values before such a position come from
the same passes whatever follows. Only those are kept, and never those of decoded tokens, which come from other passes.
Every reply is therefore the same with the cache and without it, to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from runtime._lock import Lock
from runtime.model.kv_cache import KeysValues
from runtime.model.memory import cache_bytes
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP, last_line
from runtime.prefixes.prefix import Prefix

_Ids = tuple[int, ...]


class BlockStore:
    """The blocks of all models of a server, in bounded memory: the least recently used block goes first.

    Hold `lock` around whatever belongs together: every model has a thread that reads and writes.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of keys and values in memory; 0 keeps none.

        A block of GPT-2 124M has 4.7 MB in int8, and 18.9 MB in fp32.
        """
        self.max_bytes = max_bytes
        self.lock = Lock()
        # By the cache of a model and all ids up to the block's end, least recently used first.
        self._blocks: OrderedDict[tuple[PromptCache, _Ids], KeysValues] = OrderedDict()
        self._n_bytes = 0

    def get(self, owner: PromptCache, ids: _Ids) -> KeysValues | None:
        """A block, or None."""
        return self._blocks.get((owner, ids))

    def ids_of(self, owner: PromptCache) -> list[_Ids]:
        """The ids of all blocks of a model."""
        with self.lock:
            return [ids for one, ids in self._blocks if one is owner]

    def add(self, owner: PromptCache, ids: _Ids, block: KeysValues) -> None:
        """Keep a block, and give up the least recently used ones that have no room beside it."""
        while self._blocks and self._n_bytes + block.nbytes > self.max_bytes:
            self._n_bytes -= self._blocks.popitem(last=False)[1].nbytes
        self._blocks[owner, ids] = block
        self._n_bytes += block.nbytes

    def use(self, owner: PromptCache, ids: _Ids) -> None:
        """Mark a block as the most recently used one."""
        self._blocks.move_to_end((owner, ids))

    def clear(self) -> None:
        """Give up all blocks."""
        with self.lock:
            self._blocks.clear()
            self._n_bytes = 0


class PromptCache:
    """Keys and values of beginnings of a model's prompts, in blocks of PREFILL_STEP tokens. For any thread.

    A block is found by all ids up to its end. A block is always used later than those that follow it, so no block is
    left without the ones before it.
    """

    def __init__(self, model: Model, store: BlockStore) -> None:
        """`store`: where the blocks are; several models may share one."""
        self._model = model
        self._store = store
        self._block_bytes = cache_bytes(model.config, PREFILL_STEP, 1, model.cache)
        # Blocks of one prompt.
        self._most = store.max_bytes // self._block_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values of this model that are held now."""
        return len(self._store.ids_of(self)) * self._block_bytes

    def find(self, ids: Sequence[int]) -> Prefix | None:
        """What is known of the beginning of a prompt; None where nothing is. At least one id is left to predict from.

        Several blocks are copied into one array, which lives as long as the prefix. Where memory is too short for that,
        all blocks are given up.
        """
        with self._store.lock:
            known = self._known_chain(ids, last_line(len(ids) - 1))
            self._use(known)
            blocks = [block for key in known if (block := self._store.get(self, key)) is not None]
        if not blocks:
            return None
        try:
            keys_values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=3)
        except MemoryError:
            self.clear()
            return None
        # It has no text and no identity: it never leaves the server, where there is one model.
        return Prefix(self._model, "", known[-1], keys_values, special_tokens=False, identity="")

    def keep(self, ids: Sequence[int], read: Callable[[int], KeysValues]) -> None:
        """Keep the beginning of a prompt that was prefilled, as far as there is room for it.

        read: returns a copy of the keys and values of the first so many ids. Where memory is too short, all blocks are
        given up.
        """
        end = min(last_line(len(ids)), self._most * PREFILL_STEP)
        chain = [tuple(ids[:at]) for at in range(PREFILL_STEP, end + 1, PREFILL_STEP)]
        with self._store.lock:
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
        """Give up all blocks, those of other models too: memory is short for all of them."""
        self._store.clear()

    def _known_chain(self, ids: Sequence[int], end: int) -> list[_Ids]:
        """The keys of the blocks that are there, from the first without a gap, up to position `end`."""
        chain: list[_Ids] = []
        for at in range(PREFILL_STEP, end + 1, PREFILL_STEP):
            key = tuple(ids[:at])
            if self._store.get(self, key) is None:
                break
            chain.append(key)
        return chain

    def _add(self, chain: Sequence[_Ids], keys_values: KeysValues) -> None:
        """Add blocks of one prompt, and give up the least recently used of others."""
        for key in chain:
            block = keys_values[:, :, :, len(key) - PREFILL_STEP : len(key)].copy()
            block.flags.writeable = False
            self._store.add(self, key, block)

    def _use(self, chain: Sequence[_Ids]) -> None:
        """Mark blocks of one prompt as used, the first of them last."""
        for key in reversed(chain):
            self._store.use(self, key)
