"""Speculative decoding: ids are proposed, and several of them verified in one pass.

From the logits of such a pass a row chooses one id after another, exactly as from those of passes over one id each,
until it chooses another id than the proposed one. Random draws depend on seed and step alone.

At fp32 proposals therefore change how many passes there are, and not the ids, greedy or sampled.

At int8 and int4 they change some texts. Attention over several ids differs from single steps in the last bits of
fp32, and rounding activations to int8 turns that into differences of about 0.04 in the log-probabilities, which decide
between tokens that are close; gaps of up to 0.17 were seen. Of 60 greedy texts a draft changed 16 at int8 and 10 at
int4; lookup changed 3 to 6 at int8 and 8 at int4.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from runtime.generation.batch import Events, plain_step
from runtime.generation.row import Row
from runtime.generation.speculation.proposers import Draft, Lookup, Proposer
from runtime.model.kv_cache import Cache
from runtime.model.model import Model

DRAFT_TOKENS = 8  # proposed at a time, at most
# Time of one more id, as a share of the time of a pass over one id: to verify it (measured: 0.2 to 0.35), and to
# propose it with a draft (distilgpt2 beside gpt2-large).
VERIFIED = 0.3
DRAFTED = 0.1
START = 0.5  # first estimate of the share of proposals that are accepted
LEARNED = 0.25  # weight of each new outcome in the estimate
PATIENCE = 32  # passes without a proposal before one is tried again


class Pace:
    """How many ids to propose at a time: as many as the share of accepted ones makes worth their time."""

    def __init__(self, most: int, cost: float) -> None:
        """`cost`: time of one more id, as a share of the time of a pass over one."""
        self._most = most
        self._cost = cost
        self._n_idle = 0  # passes since the last proposal
        self._rate = START
        self._n = self._best()

    def count(self) -> int:
        """For the next pass. Where none are worthwhile 0, but 1 now and then, to try."""
        self._n_idle += 1
        return self._n or int(self._n_idle > PATIENCE)

    def learn(self, n_proposed: int, n_accepted: int) -> None:
        """How the proposals fared: all accepted, or rejected at the first that was not."""
        for outcome in [1.0] * n_accepted + [0.0] * (n_accepted < n_proposed):
            self._rate += LEARNED * (outcome - self._rate)
        self._rate = min(self._rate, 0.99)
        self._n = self._best()
        self._n_idle = 0

    def _best(self) -> int:
        return max(range(self._most + 1), key=self._speed)

    def _speed(self, n: int) -> float:
        """Ids that a pass over n proposals is expected to give, in the time of a pass over one."""
        return (1 - self._rate ** (n + 1)) / (1 - self._rate) / (1 + self._cost * n)


class _Guide(NamedTuple):
    """What a row's proposals come from, and how many to ask for."""

    proposer: Proposer
    pace: Pace


class SpeculativeStep:
    """A `Step`: rows with proposals take a pass each. Where no row has any, one pass serves all."""

    def __init__(self, model: Model, capacity: int, draft: Model | None = None) -> None:
        """`capacity`: of the batch. The draft proposes for every row; without one, lookup for rows that ask for it."""
        self._room = min(capacity, model.config.n_positions)
        self._draft = draft
        self._guides: dict[Row, _Guide] = {}

    def __call__(self, cache: Cache, rows: Sequence[Row], /) -> Events:
        """See `Step`."""
        self._forget_finished()
        proposals = [self._propose(row, cache.lengths[slot]) for slot, row in enumerate(rows)]
        if any(proposals):
            for slot, (row, proposed) in enumerate(zip(rows, proposals, strict=True)):
                yield row, self._verify(cache, slot, row, proposed)
        else:
            yield from plain_step(cache, rows)
        self._forget_finished()

    def _forget_finished(self) -> None:
        """A draft's cache is freed as soon as its row has ended."""
        self._guides = {row: guide for row, guide in self._guides.items() if row.finish_reason is None}

    def _propose(self, row: Row, n_held: int) -> list[int]:
        """Ids that may follow the row's last: no more than it may generate and its slot can hold."""
        guide = self._guides.get(row) or self._make_guide(row)
        if guide is None:
            return []
        self._guides[row] = guide
        start = time.perf_counter()
        n = min(guide.pace.count(), row.n_left - 1, self._room - n_held - 1)
        proposed = guide.proposer.propose(row.ids, n) if n > 0 else []
        row.record.decode_seconds += time.perf_counter() - start
        return proposed

    def _make_guide(self, row: Row) -> _Guide | None:
        if self._draft:
            draft = Draft(self._draft, row.prompt.capacity, row.guess)
            return _Guide(draft, Pace(DRAFT_TOKENS, VERIFIED + DRAFTED))
        return _Guide(Lookup(), Pace(min(row.lookup, self._room), VERIFIED)) if row.lookup else None

    def _verify(self, cache: Cache, slot: int, row: Row, proposed: Sequence[int]) -> str:
        """A pass over the row's last id and the proposed ones; keeps what the row chooses itself."""
        start = time.perf_counter()
        n_held = cache.lengths[slot]
        n_ids = len(row.ids)
        logits = cache.extend([row.ids[-1], *proposed], row=slot, keep=1 + len(proposed))
        row.record.decode_seconds += time.perf_counter() - start
        pieces = [row.accept(logits[0])]
        for id_, after in zip(proposed, logits[1:], strict=True):
            if row.finish_reason is not None or row.ids[-1] != id_:
                break
            pieces.append(row.accept(after))
        if row.finish_reason is None:
            n_new = len(row.ids) - n_ids
            cache.truncate(slot, n_held + n_new)
            if proposed:
                self._guides[row].pace.learn(len(proposed), n_new - 1)
        return "".join(pieces)
