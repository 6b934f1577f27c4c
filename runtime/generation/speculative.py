"""Fewer passes than tokens: ids are proposed, and several of them verified in one pass.

A row chooses from the logits of such a pass one after another, as from those of passes over one id each, until it
chooses another id than the one proposed. Draws depend on seed and step alone. So at fp32 proposals change the number
of passes and not the ids, greedy or sampled.

At int8 and int4 they change some texts. Attention over several ids differs from single steps in the last bits of
fp32, and rounding activations to int8 makes differences of about 0.04 in the log-probabilities of that. They decide
between tokens that are close: gaps of up to 0.17 were seen. Of 60 greedy texts a draft changed 16 at int8 and 10 at
int4; lookup changed 3 to 6 and 8.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from runtime.generation.batch import Batch, Events
from runtime.generation.draft import Draft
from runtime.generation.lookup import Lookup
from runtime.generation.row import Row
from runtime.model.model import Model

DRAFT_TOKENS = 8  # proposed at a time, at most
# what one more id in a pass takes, of the time of a pass over one (measured: 0.2 to 0.35), and what proposing it does
VERIFIED = 0.3
DRAFTED = 0.1  # distilgpt2 beside gpt2-large
START, LEARNED = 0.5, 0.25  # the first estimate of the share that comes true, and the weight of each new outcome
PATIENCE = 32  # passes without a proposal before one is tried again


class Proposer(Protocol):
    """What expects certain ids."""

    def propose(self, ids: Sequence[int], n: int) -> list[int]:
        """Up to n ids that may follow. `ids` are those of the call before, and more."""


class Pace:
    """How many ids to propose at a time: as many as the share that came true makes worth their time."""

    def __init__(self, most: int, cost: float) -> None:
        """`cost`: time of one more id, of the time of a pass over one."""
        self._most, self._cost, self._n_idle = most, cost, 0
        self._rate = START
        self._n = self._best()

    def count(self) -> int:
        """For the next pass: 0 where none are worthwhile, but for one now and then, to try."""
        self._n_idle += 1
        return self._n or int(self._n_idle > PATIENCE)

    def learn(self, n_proposed: int, n_accepted: int) -> None:
        """How the proposals fared: all accepted, or rejected at the first that was not."""
        for outcome in [1.0] * n_accepted + [0.0] * (n_accepted < n_proposed):
            self._rate += LEARNED * (outcome - self._rate)
        self._rate = min(self._rate, 0.99)
        self._n, self._n_idle = self._best(), 0

    def _best(self) -> int:
        return max(range(self._most + 1), key=self._speed)

    def _speed(self, n: int) -> float:
        """Ids a pass of n proposals is expected to give, in the time of a pass over one."""
        return (1 - self._rate ** (n + 1)) / (1 - self._rate) / (1 + self._cost * n)


class _Guide(NamedTuple):
    proposer: Proposer
    pace: Pace


class Speculation(Batch):
    """A batch whose rows have proposals: each then takes a pass of its own. Without any, one pass serves all."""

    def __init__(self, model: Model, capacity: int, n_slots: int, draft: Model | None = None) -> None:
        """See `Batch`. The draft proposes for every row, or else a row's own text where it has `lookup`."""
        super().__init__(model, capacity, n_slots)
        self._draft, self._room = draft, min(capacity, model.config.n_positions)
        self._guides: dict[Row, _Guide] = {}

    def _step(self) -> Events:
        proposals = [self._propose(slot, row) for slot, row in enumerate(self._rows)]
        if not any(proposals):
            yield from super()._step()
            return
        for slot, (row, proposed) in enumerate(zip(self._rows, proposals, strict=True)):
            yield row, self._verify(slot, row, proposed)

    def _leave(self) -> None:
        super()._leave()
        self._guides = {row: guide for row, guide in self._guides.items() if row.finish_reason is None}

    def _propose(self, slot: int, row: Row) -> list[int]:
        """Ids that may follow the row's last: no more than it may generate and its slot can hold."""
        if row not in self._guides and (guide := self._make_guide(row)):
            self._guides[row] = guide
        if row not in self._guides:
            return []
        start, (proposer, pace) = time.perf_counter(), self._guides[row]
        n = min(pace.count(), row.n_left - 1, self._room - self._cache.lengths[slot] - 1)
        proposed = proposer.propose(row.ids, n) if n > 0 else []
        row.decode_seconds += time.perf_counter() - start
        return proposed

    def _make_guide(self, row: Row) -> _Guide | None:
        if self._draft:
            return _Guide(Draft(self._draft, row.capacity, row.guess), Pace(DRAFT_TOKENS, VERIFIED + DRAFTED))
        return _Guide(Lookup(), Pace(min(row.lookup, self._room), VERIFIED)) if row.lookup else None

    def _verify(self, slot: int, row: Row, proposed: Sequence[int]) -> str:
        """A pass over the row's last id and the proposed ones; keeps what the row chooses itself."""
        start, n_held, n_ids = time.perf_counter(), self._cache.lengths[slot], len(row.ids)
        logits = self._cache.extend([row.ids[-1], *proposed], row=slot, keep=1 + len(proposed))
        row.decode_seconds += time.perf_counter() - start
        pieces = [row.accept(logits[0])]
        for id_, after in zip(proposed, logits[1:], strict=True):
            if row.finish_reason is not None or row.ids[-1] != id_:
                break
            pieces.append(row.accept(after))
        if row.finish_reason is None:
            n_new = len(row.ids) - n_ids
            self._cache.truncate(slot, n_held + n_new)
            if proposed:
                self._guides[row].pace.learn(len(proposed), n_new - 1)
        return "".join(pieces)
