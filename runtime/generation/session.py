"""Generation step by step: append, read the distribution of the next token, fork, rewind.

A session remembers in which passes its tokens were computed, since int8 logits depend a little on that. Going back
computes the pass again in which the position lies, up to the position. So a session is always, to the last bit, what a
new session would be after the same calls of `append`, the last of them cut where it went back to.

Forks share one key-value cache. Each holds the first positions of it, and one of them may write behind what the others
hold; another that wants to write there first gets a cache of its own, with a copy of what it holds.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from runtime._checks import check_count, check_flag, check_prompt, check_vocabulary
from runtime._lock import Lock
from runtime._math import log_softmax
from runtime.errors import ContextLengthError, NoTokenError
from runtime.generation.chooser import check_numbers
from runtime.generation.logits.penalties import make_penalties
from runtime.generation.logits.sampling import draw_seed, make_sampler
from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import cut
from runtime.model.resolve import ModelOrPath, resolve
from runtime.options import Options, check_seed
from runtime.tokenization.encode import check_fits, encode

# Positions that a cache has at first; it grows to twice the size.
_LEAST_CAPACITY = 64


class _Pass(NamedTuple):
    """Positions begin .. end, computed together. `first`: where the tokens of their call of `append` begin."""

    begin: int
    end: int
    first: int

    @property
    def is_step(self) -> bool:
        """Whether the pass is one step of a continuation, and no part of a prompt."""
        return self.begin == self.first > 0 and self.end == self.begin + 1


class _SharedCache:
    """A key-value cache, and the sessions that hold its first positions."""

    def __init__(self, model: Model, capacity: int) -> None:
        self.cache = model.new_cache(capacity)
        self.capacity = capacity
        self.holders: weakref.WeakSet[Session] = weakref.WeakSet()
        # Held while a pass writes, so that another thread that shares the cache does not write at the same time.
        self.lock = Lock()

    def may_write(self, session: Session, begin: int, end: int) -> bool:
        """Whether the session may write the positions begin .. end: there is room, and no other holds one of them."""
        others = (other for other in self.holders if other is not session)
        return end <= self.capacity and all(other._n_held <= begin for other in others)


class Session:
    """A text that grows token by token, with the distribution of its next token at each point.

    Made for search, for sampling of your own, and for everything that needs the model between two tokens.

        session = runtime.Session(model)
        session.append("Once upon a time")
        session.logprobs()  # [n_vocab], of the token that follows
        session.append([session.sample(temperature=0.8, seed=7)])

    The first `append` is the prompt, in one piece of at most 256 tokens a pass, as in `runtime.generate`. What is
    appended one id at a time has the bits that generation has: at every precision

        for _ in range(n):
            session.append([session.sample(**options)])

    appends the ids that `runtime.complete(prompt, max_new_tokens=n, **options)` generates. Several ids in one call
    share a pass; at int8 and int4 their log-probabilities differ by about 0.04 from those of single steps, at fp32 by
    rounding.

    A session is for one thread at a time; forks of one session may be in different threads.

    Example:
        >>> with runtime.Session("models/demo-int8") as session:
        ...     session.append("Once upon a time")
        ...     with session.fork() as other:
        ...         other.append([other.sample()])
        ...         other.text
        ...     session.text
        'Once upon a time,'
        'Once upon a time'

    """

    def __init__(self, model: ModelOrPath = None) -> None:
        """An empty session.

        model: a Model, the path of a model folder, or None, as for `runtime.generate`.
        Raises NoModelError where no model is found; MemoryBudgetError beyond the model's `max_memory`.
        """
        self._start(resolve(model))

    def _start(self, model: Model) -> None:
        self.model = model
        self._ids: list[int] = []
        self._n_prompt = 0
        self._passes: list[_Pass] = []
        # What the cache holds for this session: fewer than all ids after going back into a pass.
        self._n_held = 0
        self._logits: Logits | None = None
        self._shared: _SharedCache | None = None
        self._is_closed = False

    @property
    def ids(self) -> list[int]:
        """All token ids, a copy."""
        return list(self._ids)

    @property
    def text(self) -> str:
        """What the ids decode to. Raises NoTokenizerError where the model has no tokenizer."""
        return self.model.decode(self._ids)

    def __len__(self) -> int:
        """How many tokens there are, at most the model's n_positions."""
        return len(self._ids)

    def append(self, text: str | Sequence[int], *, special_tokens: bool = False) -> None:
        """Add a text, or token ids, and compute what follows.

        text: a text has the ids of `Model.encode`: nothing is put around it, and it is encoded without what stands
            before. A text of no ids changes nothing.
        special_tokens: read `<|endoftext|>` and its like in the text as tokens, not as text.
        Raises TypeError for what is neither; ValueError for ids outside the vocabulary, no ids, and a closed session;
        ContextLengthError beyond n_positions. The session stays as it was then.
        """
        self._check_open()
        ids = self._read(text, check_flag("special_tokens", special_tokens))
        n = len(self._ids) + len(ids)
        size = self.model.config.n_positions
        if n > size:
            told = f"{len(self._ids)} tokens and {len(ids)} more pass the model's {size} positions; append at most"
            raise ContextLengthError(f"{told} {size - len(self._ids)}, or rewind", n, n_positions=size)
        if not ids:
            return
        self._settle()
        before = len(self._ids)
        ends = list(itertools.accumulate(map(len, cut(ids, before)), initial=before))
        passes = [_Pass(begin, end, before) for begin, end in itertools.pairwise(ends)]
        self._run(passes, [*self._ids, *ids])
        self._n_prompt = self._n_prompt or n
        self._ids += ids
        self._passes += passes

    def _read(self, text: str | Sequence[int], special_tokens: bool) -> list[int]:
        given = check_prompt("text", text)
        if isinstance(given, str):
            check_fits(self.model, given, self.model.config.n_positions)
            return encode(self.model, given, special_tokens=special_tokens)
        check_vocabulary("text", given, self.model.config.vocab_size)
        return given

    def logits(self) -> NDArray[np.float32]:
        """The model's logits [n_vocab] of the token that follows, a copy.

        Raises ValueError for an empty or closed session.
        """
        return self._read_logits().copy()

    def logprobs(self) -> NDArray[np.float32]:
        """Log-probabilities [n_vocab] of the token that follows: natural logarithms, before any option of sampling.

        Raises ValueError for an empty or closed session.

        >>> session = runtime.Session("models/demo-int8")
        >>> session.append("Once upon a")
        >>> session.model.decode([int(session.logprobs().argmax())])
        ' time'
        """
        return log_softmax(self._read_logits())

    def sample(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram_size: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        suppress_ids: Sequence[int] = (),
        seed: int | None = None,
    ) -> int:
        """Choose the next id, without appending it. An end of text is an id like any other.

        The options are those of `runtime.generate`. What was appended first is the prompt, and what follows counts as
        generated, for presence_penalty and frequency_penalty, and for the draw: the same seed at the same distance
        from the prompt draws the same number.

        Raises TypeError and OptionError as `runtime.generate` does; NoTokenError where the options leave no token;
        ValueError for an empty or closed session.

        >>> session = runtime.Session("models/demo-int8")
        >>> session.append("Once upon a")
        >>> session.model.decode([session.sample()])
        ' time'
        """
        options = Options(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            logit_bias=logit_bias,
            suppress_ids=suppress_ids,
            seed=seed,
        )
        check_seed(options)
        return self._choose(options)

    def _choose(self, options: Options) -> int:
        logits = self._read_logits()
        n_new = len(self._ids) - self._n_prompt
        allowed = self._penalize(logits, options, n_new)
        # NaN is not above -inf either.
        if not allowed.max() > -np.inf:
            check_numbers(logits)
            raise NoTokenError("suppress_ids, logit_bias or no_repeat_ngram_size leave no token to choose", n_new)
        seed = draw_seed() if options.seed is None and options.temperature else options.seed
        return make_sampler(options, seed or 0)(allowed, n_new)

    def _penalize(self, logits: Logits, options: Options, n_new: int) -> Logits:
        config = self.model.config
        penalties = make_penalties(options, config.eos_token_ids, config.vocab_size, config.n_positions)
        if penalties is None:
            return logits
        history = penalties.new_history(self._n_prompt, len(self._ids))
        history.follow(self._ids)
        return penalties(logits, history, n_new)

    def fork(self) -> Session:
        """Another session with the same tokens, which goes its own way. Nothing is computed again.

        Both share keys and values. The first that appends goes on in the shared cache; another that appends copies
        what it holds first: 2 * n_layer * n_embd bytes a token, with an fp32 cache four times as much. One that is
        closed, or no longer used, holds nothing.
        Raises ValueError for a closed session.
        """
        self._check_open()
        other = Session.__new__(type(self))
        other._start(self.model)
        other._ids = list(self._ids)
        other._n_prompt = self._n_prompt
        other._passes = list(self._passes)
        other._n_held = self._n_held
        other._logits = self._logits
        other._shared = self._shared
        if self._shared is not None:
            with self._shared.lock:
                self._shared.holders.add(other)
        return other

    def rewind(self, n: int) -> None:
        """Forget all but the first `n` tokens.

        The next `append` or `logprobs` computes at most one pass again, that in which position `n` lies.
        Raises TypeError or ValueError for what is not a whole number from 0 to len(session), and a closed session.

        >>> session = runtime.Session("models/demo-int8")
        >>> session.append("Once upon a time")
        >>> session.rewind(2)
        >>> session.text
        'Once upon'
        """
        self._check_open()
        n = check_count("n", n, least=0, most=len(self._ids))
        if n == len(self._ids):
            return
        del self._ids[n:]
        while self._passes and self._passes[-1].begin >= n:
            self._passes.pop()
        self._n_prompt = min(self._n_prompt, n)
        self._logits = None
        self._n_held = min(self._n_held, n)
        if self._passes and self._passes[-1].end > n:
            cut_short = self._passes.pop()._replace(end=n)
            self._passes.append(cut_short)
            self._n_held = min(self._n_held, cut_short.begin)

    def close(self) -> None:
        """Give up the keys and values. Closing again changes nothing."""
        if self._shared is not None:
            with self._shared.lock:
                self._shared.holders.discard(self)
        self._shared = None
        self._logits = None
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self._ids)} tokens"
        return f"<Session {state}, {self.model.folder}>"

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the session is closed; make another")

    def _read_logits(self) -> Logits:
        """Those after the last token; they are not to be changed."""
        self._check_open()
        if not self._ids:
            raise ValueError("the session is empty; append a text, or the id of the model's bos_token")
        if self._logits is None:
            self._run(self._passes[-1:], self._ids)
        assert self._logits is not None
        return self._logits

    def _settle(self) -> None:
        """After going back into a pass: compute its beginning again."""
        if self._n_held < len(self._ids):
            self._run(self._passes[-1:], self._ids)

    def _run(self, passes: Sequence[_Pass], ids: Sequence[int]) -> None:
        """Make the passes, over their part of `ids`, after what stands before the first of them."""
        begin = passes[0].begin
        while True:
            shared = self._take_room(begin, passes[-1].end)
            with shared.lock:
                # Another session may have taken the room meanwhile.
                if shared.may_write(self, begin, passes[-1].end):
                    self._write(shared, passes, ids)
                    return

    def _write(self, shared: _SharedCache, passes: Sequence[_Pass], ids: Sequence[int]) -> None:
        cache = shared.cache
        # A pass that fails leaves what stands before it.
        self._n_held = passes[0].begin
        self._logits = None
        cache.truncate(0, self._n_held)
        logits: Logits
        for one in passes:
            own = ids[one.begin : one.end]
            logits = cache.step(own) if one.is_step else cache.extend(own)
            self._n_held = one.end
        self._logits = logits[-1].copy()

    def _take_room(self, begin: int, end: int) -> _SharedCache:
        """A cache that holds the first `begin` positions, where this session may write up to `end`."""
        old = self._shared
        if old is None:
            return self._hold(self._new_cache(end))
        with old.lock:
            if old.may_write(self, begin, end):
                return old
            new = self._new_cache(end)
            new.cache.write_row(0, old.cache.read_row(0, begin))
            old.holders.discard(self)
        return self._hold(new)

    def _new_cache(self, end: int) -> _SharedCache:
        """One for `end` positions, and for as many to come."""
        capacity = min(max(2 * end, _LEAST_CAPACITY), self.model.config.n_positions)
        return _SharedCache(self.model, capacity)

    def _hold(self, shared: _SharedCache) -> _SharedCache:
        shared.holders.add(self)
        self._shared = shared
        return shared
