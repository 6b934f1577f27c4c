"""Infilling: what may stand between a prompt and a suffix.

GPT-2 reads from left to right and was not trained to write towards an end. So several middles are sampled after the
prompt, and ranked by the probability of the suffix after prompt and middle. All of them are ranked by the same ids of
the suffix, so the sum of their log-probabilities and the mean rank alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runtime._checks import Prompt
from runtime.errors import ContextLengthError, OptionError
from runtime.generation.completion import Completion
from runtime.generation.context_window import FittedPrompt
from runtime.generation.loop import generate_pieces, make_rows
from runtime.generation.row import Row
from runtime.model.model import Model
from runtime.model.prefill import PREFILL_STEP
from runtime.options import Options
from runtime.prefixes.prefix import Prefix, make
from runtime.scoring.context import SharedContext
from runtime.scoring.scoring import Score, score_after
from runtime.tokenization.encode import check_fits, encode, encode_prompt
from runtime.tokenization.token_texts import token_texts


@dataclasses.dataclass(frozen=True)
class Middle:
    """What may stand between a prompt and a suffix.

    completion: the middle, as `runtime.complete` returns it.
    suffix: how likely the suffix is after prompt and middle; middles are ranked by its `logprob`.
    """

    completion: Completion
    suffix: Score

    @property
    def text(self) -> str:
        """The text of the middle, without prompt and suffix."""
        return self.completion.text


def infill(
    model: Model,
    prompt: Prompt,
    suffix: Prompt,
    options: Options,
    best_of: int,
    batch_size: int,
    prefix: Prefix | None = None,
) -> list[Middle]:
    """See `runtime.infill`."""
    suffix_ids = encode_suffix(model, suffix)
    prompt_ids = _encode_prompt(model, prompt, options)
    check_options(model, options, best_of, len(prompt_ids), len(suffix_ids))
    if prefix is None and len(prompt_ids) > PREFILL_STEP:
        # Writing and ranking share what is computed of the prompt.
        prefix = make(model, prompt_ids)
        prompt = prompt_ids
    rows = make_rows(model, [prompt], [options], best_of, n_top=0, prefix=prefix)
    for _ in generate_pieces(model, rows, batch_size):
        pass
    scores = rank(model, rows, prompt_ids, suffix_ids, prefix)
    middles = [Middle(row.completion(), score) for row, score in zip(rows, scores, strict=True)]
    return sorted(middles, key=lambda middle: middle.suffix.logprob, reverse=True)


def _encode_prompt(model: Model, prompt: Prompt, options: Options) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    check_fits(model, prompt, model.config.n_positions)
    return encode_prompt(model, prompt, special_tokens=options.special_tokens)


def encode_suffix(model: Model, suffix: Prompt) -> list[int]:
    """The ids of a suffix, on its own. Raises ValueError where there are none, ContextLengthError for far too many."""
    if isinstance(suffix, str):
        check_fits(model, suffix, model.config.n_positions)
    ids = encode(model, suffix) if isinstance(suffix, str) else list(suffix)
    if not ids:
        what = "is empty" if not suffix else f"{suffix!r} has no token of this model's vocabulary"
        raise ValueError(f"the suffix {what}: there is nothing to rank by; runtime.complete continues a prompt alone")
    return ids


def check_options(model: Model, options: Options, best_of: int, n_prompt: int, n_suffix: int) -> None:
    """Raise OptionError for options that leave nothing to rank, ContextLengthError where all may not fit."""
    if options.temperature == 0:
        told = "at temperature 0 all middles are the same, and there is nothing to rank; set temperature (1.0 is the "
        raise OptionError(f"{told}model's own distribution)", "temperature")
    if options.overflow != "error":
        told = f"overflow={options.overflow!r} is for a prompt that is continued; prompt, middle and suffix must fit "
        raise OptionError(f"{told}together: leave it out", "overflow")
    n_positions = model.config.n_positions
    # The last token of the suffix is predicted, and not fed.
    n_over = n_prompt + options.max_new_tokens + n_suffix - 1 - n_positions
    if n_over > 0:
        told = (
            f"a prompt of {n_prompt} tokens, max_new_tokens {options.max_new_tokens} and a suffix of {n_suffix} tokens "
            f"are {n_over} more than the {n_positions + 1} that a model of {n_positions} positions takes; shorten one"
        )
        raise ContextLengthError(told, n_prompt, options.max_new_tokens, n_positions)
    if best_of < 2:
        raise ValueError(f"best_of is {best_of}; at least 2 middles are needed to rank them")


def rank(
    model: Model,
    rows: Sequence[Row],
    prompt_ids: Sequence[int],
    suffix_ids: Sequence[int],
    prefix: Prefix | None = None,
) -> list[Score]:
    """The score of the suffix after each of several finished rows of one prompt.

    The prompt is run once for all of them, and equal middles are scored once. `prefix`: the ids that it has in common
    with the prompt are not computed again.
    """
    fitted = rows[0].prompt
    middles = [_middle_ids(model, row, fitted, prompt_ids) for row in rows]
    different = list(dict.fromkeys(middles))
    room = max(map(len, different)) + len(suffix_ids) - 1
    shared = SharedContext(model, fitted.window, room, len(different), prefix)
    scores = {middle: _score_suffix(model, shared, middle, suffix_ids) for middle in different}
    return [scores[middle] for middle in middles]


def _middle_ids(model: Model, row: Row, fitted: FittedPrompt, prompt_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids after the fitted prompt that the suffix follows."""
    completion = row.completion()
    if not row.stream.stopped:
        return tuple(completion.ids)
    # A stop string, which is not part of the middle, may begin inside a token: the text has other ids then.
    healed = model.decode(prompt_ids[len(fitted.window) :])
    return tuple(encode(model, healed + completion.text))


def _score_suffix(model: Model, shared: SharedContext, middle: Sequence[int], suffix_ids: Sequence[int]) -> Score:
    whole = score_after(shared, [*middle, *suffix_ids])
    greedy = whole.greedy[len(middle) :]
    logprobs = whole.logprobs[len(middle) :]
    return Score(list(suffix_ids), logprobs, all(greedy), greedy, tokens=token_texts(model, suffix_ids))
