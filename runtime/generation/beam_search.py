"""Beam search: the likeliest of whole continuations, where greedy decoding takes the likeliest next token.

The search is that of transformers 4.57 (`GenerationMixin._beam_search`), one prompt at a time.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from runtime._checks import Prompt
from runtime._math import likeliest, log_softmax
from runtime.errors import OptionError
from runtime.generation.chooser import check_numbers
from runtime.generation.completion import Completion, FinishReason
from runtime.generation.context_window import fit_prompt, tokenize
from runtime.generation.logits.banned import make_banned
from runtime.generation.logits.history import TokenHistory
from runtime.generation.logits.penalties import find_penalties
from runtime.generation.stopping import Interruption
from runtime.generation.streaming import TextStream
from runtime.model.kv_cache import Logits
from runtime.model.model import Model
from runtime.model.prefill import prefill
from runtime.model.tokenizer.detokenizer import Detokenizer
from runtime.options import Options
from runtime.prefixes.prefix import Prefix, known
from runtime.tokenization.token_texts import token_texts

EarlyStopping = bool | Literal["never"]
_MAX_LENGTH_PENALTY = 50  # a length to a much larger power is no float


@dataclasses.dataclass(frozen=True)
class Beams:
    """The shape of a search. Raises TypeError or ValueError, naming option, value and what is allowed."""

    num_beams: int  # continuations kept after every step
    n: int = 1  # how many of them to return
    length_penalty: float = 1.0  # a finished beam scores its log-probability / length ** length_penalty
    early_stopping: EarlyStopping = False  # see `_Search._is_done`
    n_top: int = 0  # alternatives to record for each token

    def __post_init__(self) -> None:
        if self.n > self.num_beams:
            raise ValueError(f"n is {self.n}, more than num_beams {self.num_beams}; raise num_beams or lower n")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, numbers.Real):
            raise TypeError(f"length_penalty is {self.length_penalty!r}; a number is expected")
        if not -_MAX_LENGTH_PENALTY <= self.length_penalty <= _MAX_LENGTH_PENALTY:
            raise ValueError(f"length_penalty is {self.length_penalty}; it must be within {_MAX_LENGTH_PENALTY} of 0")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(f"early_stopping is {self.early_stopping!r}; True, False or 'never'")

    def check(self, model: Model, options: Options) -> None:
        """Raise ValueError, naming both, for what does not go with beams."""
        refused = {
            f"temperature {options.temperature}": options.temperature != 0,
            f"seed {options.seed}": options.seed is not None,
            "overflow 'slide'": options.overflow == "slide",
            "token_healing": options.token_healing,
            "logits_processor": options.logits_processor is not None,
            options.form.option if options.form else "form": options.form is not None,
        }
        for name, is_given in refused.items():
            if is_given:
                told = f"{name} does not go with num_beams {self.num_beams}; leave one of them out"
                raise OptionError(told, name.split()[0])
        if not model.is_fused:
            raise ValueError(
                f"{model.folder} is a plain ONNX export and decodes one row at a time, so num_beams must be 1, "
                f"not {self.num_beams}; python export/build.py makes model folders that take beams"
            )


def search(
    model: Model, prompts: Sequence[Prompt], options: Options, shape: Beams, prefix: Prefix | None = None
) -> list[Completion]:
    """The `n` best continuations of each prompt, best first, prompt by prompt; each prompt is searched on its own.

    Penalties change the log-probabilities, not the logits. The end of text, and a stop id, count towards score and
    length; a beam that completes a stop string ends there, with all ids of the string. At a deadline or a
    cancellation the beams under way compete with the finished ones, and what has not begun is empty.

    There are always `n` for each prompt. Where penalties, biases and bans leave fewer, beams that had no token left to
    go on with follow those that finished, and then empty continuations without a score: all with finish_reason
    "no_token". transformers returns other beams again there, or banned ids, with a score of about -1e9.
    Raises ValueError for what does not go with beams, for a prompt that does not fit, and for logits that are not
    numbers.
    """
    shape.check(model, options)
    if prefix is not None:
        for prompt in prompts:
            prefix.check(prompt)
    interruption = Interruption(options)
    given = [tokenize(model, prompt, options) for prompt in prompts]
    windows = [fit_prompt(ids, options, model.config.n_positions) for ids in given]
    completions = []
    for index, (ids, window) in enumerate(zip(given, windows, strict=True)):
        one = _Search(model, window, options, shape, interruption)
        one.run(prefix)
        completions += one.completions(index, n_truncated=len(ids) - len(window))
    return completions


@dataclasses.dataclass(frozen=True)
class _Beam:
    """A continuation, finished or under way."""

    ids: list[int]  # with the prompt's, without an end of text or stop id
    row: int = 0  # of the cache, which holds all of them but the last
    total: float = 0.0  # log-probability after penalties, an end of text or stop id included
    score: float | None = 0.0  # total / length ** length_penalty; None for one that does not exist
    logprobs: list[float] = dataclasses.field(default_factory=list)  # before penalties, one for each id generated
    top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    history: TokenHistory | None = None  # of one under way, where there are penalties


def _score(beam: _Beam) -> float:
    return -math.inf if beam.score is None else beam.score


class _Search:
    """The beams of one prompt: `run` finds them, `completions` shows the best."""

    def __init__(
        self, model: Model, prompt: list[int], options: Options, shape: Beams, interruption: Interruption
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._options = options
        self._shape = shape
        self._interruption = interruption
        self._n_max = min(options.max_new_tokens, model.config.n_positions - len(prompt))
        self._eos_ids = model.config.eos_token_ids
        self._stop_ids = frozenset(options.stop_ids)
        self._penalties = find_penalties(model, options)
        self._banned = make_banned(model, options.banned_phrases, prompt)
        # Stop strings are found in the text that is shown, and in the text with special tokens written out.
        self._tokenizer = model.tokenizer if model.has_tokenizer or options.stops else None
        self._detokenizers = (
            [Detokenizer(self._tokenizer, skip_special_tokens=skip) for skip in (True, False)]
            if self._tokenizer
            else []
        )
        self._cache = model.new_cache(len(prompt) + self._n_max, shape.num_beams)
        # Best first, num_beams of each at most.
        self._running = [_Beam(prompt, history=self._new_history())]
        self._finished: list[_Beam] = []
        self._stuck: list[_Beam] = []  # without a token to go on with
        self._n_new = 0
        self._prefill_seconds = 0.0
        self._decode_seconds = 0.0

    def _new_history(self) -> TokenHistory | None:
        n = len(self._prompt)
        return self._penalties.new_history(n, n + self._n_max) if self._penalties else None

    def run(self, prefix: Prefix | None) -> None:
        """Search to the end, or to an interruption: then there are beams still running."""
        start = time.perf_counter()
        kept = known(prefix, self._prompt)
        logits = prefill(self._cache, self._prompt, interrupted=self._interruption, known=kept)[None]
        self._prefill_seconds = time.perf_counter() - start
        while self._interruption.reason is None:
            held = self._running
            check_numbers(logits)
            self._advance(log_softmax(logits))
            if not self._running or self._interruption():
                return
            logits = self._step(held)

    def _step(self, held: Sequence[_Beam]) -> Logits:
        """Logits [n_running, n_vocab] after the running beams; `held`: those that the cache's rows hold so far."""
        start = time.perf_counter()
        # Rows with the same ids hold the same keys and values, and beams mostly part a few ids before their end.
        ids = np.array([beam.ids for beam in held])
        n_same = int((ids == ids[0]).all(0).cumprod().sum()) if len(self._running) <= len(held) else 0
        self._cache.reorder([beam.row for beam in self._running], begin=n_same)
        logits = self._cache.step([beam.ids[-1] for beam in self._running])
        self._decode_seconds += time.perf_counter() - start
        return logits

    def _advance(self, logprobs: Logits) -> None:
        """Replace the running beams by their best continuations, none at the end; logprobs: [n_running, n_vocab]."""
        n = self._shape.num_beams
        parents = self._running
        candidates = self._candidates(logprobs)
        self._n_new += 1
        self._running = []
        for rank, (total, row, id_) in enumerate(candidates):
            if rank >= n and len(self._running) == n:
                break
            beam = self._extend(parents[row], row, id_, total, logprobs[row])
            if beam.finish_reason is None:
                self._running.append(beam)
            # Those that finish further down only made room for the running ones.
            elif rank < n:
                self._finished.append(beam)
        self._running = [_forked(beam) for beam in self._running[:n]]
        self._finished = sorted(self._finished, key=_score, reverse=True)[:n]
        if self._is_done():
            self._running = []

    def _candidates(self, logprobs: Logits) -> list[tuple[float, int, int]]:
        """(total, row, id), best first: enough that num_beams remain when every end of text is among them."""
        totals = self._penalize(logprobs)
        self._keep_stuck(totals)
        so_far = np.array([[beam.total] for beam in self._running], np.float32)
        # Penalties may reach to the end of fp32, and several beyond it.
        with np.errstate(over="ignore"):
            flat = (totals + so_far).ravel()
        n = min(max(2, 1 + len(self._eos_ids | self._stop_ids)) * self._shape.num_beams, len(flat))
        best = np.sort(np.argpartition(-flat, n - 1)[:n])
        ordered = best[np.argsort(-flat[best], kind="stable")]
        return [(float(flat[at]), *divmod(int(at), logprobs.shape[1])) for at in ordered if flat[at] > -np.inf]

    def _penalize(self, logprobs: Logits) -> Logits:
        """What the running beams' log-probabilities [n_running, n_vocab] are after penalties and bans."""
        if self._penalties is None and self._banned is None:
            return logprobs
        return np.stack([self._restrict(*of_beam) for of_beam in zip(self._running, logprobs, strict=True)])

    def _restrict(self, beam: _Beam, logprobs: Logits) -> Logits:
        """The log-probabilities [n_vocab] of one beam after penalties, without what completes a banned phrase."""
        if self._penalties:
            assert beam.history
            beam.history.follow(beam.ids)
            logprobs = self._penalties(logprobs, beam.history, self._n_new)
        if self._banned:
            logprobs = self._banned.restrict(logprobs, beam.ids[len(self._prompt) :])
        return logprobs

    def _keep_stuck(self, totals: Logits) -> None:
        """Keep the running beams that nothing may follow; totals: [n_running, n_vocab]."""
        length = max(1, self._n_new) ** self._shape.length_penalty
        for beam, row in zip(self._running, totals, strict=True):
            if row.max() == -np.inf:
                stuck = dataclasses.replace(beam, score=beam.total / length, finish_reason="no_token", history=None)
                self._stuck.append(stuck)
        self._stuck = sorted(self._stuck, key=_score, reverse=True)[: self._shape.num_beams]

    def _extend(self, parent: _Beam, row: int, id_: int, total: float, logprobs: Logits) -> _Beam:
        """The beam with one id more, finished where it ends there; logprobs: [n_vocab], which the id is from."""
        score = float(total / self._n_new**self._shape.length_penalty)
        if id_ in self._eos_ids or id_ in self._stop_ids:
            reason: FinishReason = "eos" if id_ in self._eos_ids else "stop"
            return dataclasses.replace(parent, total=total, score=score, finish_reason=reason, history=None)
        ids = [*parent.ids, id_]
        n_top = self._shape.n_top
        return _Beam(
            ids=ids,
            row=row,
            total=total,
            score=score,
            logprobs=[*parent.logprobs, float(logprobs[id_])],
            top_logprobs=[*parent.top_logprobs, likeliest(logprobs, n_top)] if n_top else [],
            finish_reason=self._find_end(ids),
            history=parent.history,
        )

    def _find_end(self, ids: list[int]) -> FinishReason | None:
        """Why a beam of these ids ends, the last of which is text."""
        if self._options.stops:
            texts = [detokenizer.decode(ids[len(self._prompt) :]) for detokenizer in self._detokenizers]
            if any(stop in text for text in texts for stop in self._options.stops):
                return "stop"
        if self._n_new < self._n_max:
            return None
        return "length" if self._n_max == self._options.max_new_tokens else "context"

    def _is_done(self) -> bool:
        """Whether no running beam can become, or by early_stopping may become, one of the best."""
        shape = self._shape
        if not self._running or len(self._finished) < shape.num_beams or shape.early_stopping is True:
            return not self._running or len(self._finished) == shape.num_beams
        # What may become of the best: at its present length, which is a guess, or at the length that serves it most.
        longest = shape.early_stopping == "never" and shape.length_penalty > 0
        hope = self._running[0].total / (self._n_max if longest else self._n_new) ** shape.length_penalty
        return bool(hope <= _score(self._finished[-1]))

    def completions(self, prompt_index: int, n_truncated: int) -> list[Completion]:
        """The `n` best, best first."""
        n = self._shape.n
        cut = [dataclasses.replace(beam, finish_reason=self._interruption.reason) for beam in self._running]
        best = sorted(self._finished + cut, key=_score, reverse=True)[:n]
        if cut:
            # Before the first step there is one beam, the empty one.
            best += [best[-1]] * (n - len(best))
        best += self._stuck[: n - len(best)]
        none = _Beam(self._prompt, score=None, finish_reason="no_token")
        best += [none] * (n - len(best))
        return [self._completion(beam, prompt_index, rank, n_truncated) for rank, beam in enumerate(best)]

    def _completion(self, beam: _Beam, prompt_index: int, rank: int, n_truncated: int) -> Completion:
        ids = beam.ids[len(self._prompt) :]
        stream = TextStream(self._tokenizer, self._prompt, self._options.stops)
        for id_ in ids:
            stream.push(id_)
        stream.flush()
        return Completion(
            prompt_index=prompt_index,
            sample_index=rank,
            text=stream.text,
            ids=ids,
            finish_reason=beam.finish_reason or "length",
            logprobs=beam.logprobs,
            top_logprobs=beam.top_logprobs,
            seed=None,
            n_prompt_tokens=len(self._prompt) + n_truncated,
            n_truncated=n_truncated,
            n_slides=0,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
            beam_score=beam.score,
            tokens=token_texts(self._model, ids),
        )


def _forked(beam: _Beam) -> _Beam:
    """With a history of its own: several beams may continue the same one."""
    return dataclasses.replace(beam, history=beam.history.fork()) if beam.history else beam
