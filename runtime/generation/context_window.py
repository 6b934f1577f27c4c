"""Prompts and the model's n_positions: what fits, and what happens to what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runtime._checks import Prompt
from runtime.errors import ContextLengthError, OptionError
from runtime.generation.completion import FinishReason
from runtime.generation.token_healing import Healing, heal
from runtime.model.model import Model
from runtime.options import Options
from runtime.tokenization.encode import check_fits, encode_prompt


def tokenize(model: Model, prompt: Prompt, options: Options) -> list[int]:
    """Ids of a prompt, which may be ids already; a text that cannot fit is refused before it is tokenized.

    Raises what `check_fits` and `encode_prompt` do.
    """
    if not isinstance(prompt, str):
        return prompt
    if options.overflow in ("error", "stop"):
        try:
            check_fits(model, prompt, model.config.n_positions)
        except ContextLengthError as error:
            told = f"{error}, or overflow='truncate_left' leaves out its beginning"
            raise ContextLengthError(told, error.n_prompt, options.max_new_tokens, error.n_positions) from None
    return encode_prompt(model, prompt, special_tokens=options.special_tokens)


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """A prompt as its continuation begins with it, from `fit`."""

    window: list[int]  # ids that the cache is to hold before the first new id
    ids: list[int]  # those that count for penalties and for windows to come: with overflow "slide" more than `window`
    n_tokens: int  # of the whole prompt, what was left out and what is healed included
    n_truncated: int  # tokens left out
    n_pinned: int  # first ids that stay when the window slides
    healing: Healing | None  # how the last token may grow
    n_max: int  # ids that may be generated
    limit_reason: FinishReason  # what ends the continuation after n_max ids
    capacity: int  # tokens that a cache needs room for

    @property
    def n_healed(self) -> int:
        """Characters of the prompt that the first new token is to repeat."""
        return len(self.healing.text) if self.healing else 0


def fit(model: Model, prompt_ids: Sequence[int], options: Options) -> FittedPrompt:
    """Apply `overflow`, `pinned_tokens` and `token_healing` to a prompt. Raises what `fit_prompt` does."""
    n_positions = model.config.n_positions
    healing = heal(model.tokenizer, prompt_ids[-n_positions:]) if options.token_healing else None
    given = prompt_ids[:-1] if healing else prompt_ids
    window = fit_prompt(given, options, n_positions)
    ids = window
    n_max = options.max_new_tokens
    if options.overflow == "slide":
        ids = history(given, options.pinned_tokens, n_positions)
    elif options.overflow == "stop":
        n_max = min(n_max, n_positions - len(window))
    return FittedPrompt(
        window=window,
        ids=ids,
        n_tokens=len(prompt_ids),
        n_truncated=len(given) - len(window),
        n_pinned=min(options.pinned_tokens, len(ids)),
        healing=healing,
        n_max=n_max,
        limit_reason="length" if n_max == options.max_new_tokens else "context",
        capacity=min(len(window) + options.max_new_tokens, n_positions),
    )


def fit_prompt(ids: Sequence[int], options: Options, n_positions: int) -> list[int]:
    """The part of the prompt to prefill, by `options.overflow`.

    Raises ValueError, with the numbers and what would fit, where the option does not allow what would be needed.
    """
    n = len(ids)
    n_new = options.max_new_tokens
    if options.pinned_tokens > n_positions // 2:
        told = f"pinned_tokens {options.pinned_tokens} is above half of the model's {n_positions} positions"
        raise OptionError(told, "pinned_tokens")
    if n + n_new <= n_positions or (options.overflow == "stop" and n < n_positions):
        return list(ids)
    if options.overflow == "truncate_left" and n_new < n_positions:
        return list(ids[n + n_new - n_positions :])
    if options.overflow == "slide":
        return list(ids) if n < n_positions else slide(ids, options.pinned_tokens, n_positions)
    room = n_positions - n
    cure = f"max_new_tokens can be at most {room}" if room > 0 else f"the prompt must be under {n_positions} tokens"
    if options.overflow == "truncate_left":
        cure = f"max_new_tokens must be under {n_positions} for any prompt"
    asked = f"a prompt of {n} tokens and max_new_tokens {n_new}"
    told = f"{asked} pass the model's {n_positions} positions; {cure}"
    if options.overflow == "error":
        told += ", or overflow='truncate_left' leaves out the prompt's beginning, and overflow='slide' writes on"
    raise ContextLengthError(told, n, n_new, n_positions)


def slide(ids: Sequence[int], n_pinned: int, n_positions: int) -> list[int]:
    """The pinned beginning and the latest ids, half of the remaining positions left free for more."""
    n_latest = (n_positions - n_pinned) // 2
    return [*ids[:n_pinned], *ids[len(ids) - n_latest :]]


def history(ids: Sequence[int], n_pinned: int, n_positions: int) -> list[int]:
    """Of a prompt of any length what matters later: the pinned beginning, and the latest n_positions ids."""
    return [*ids[: min(n_pinned, max(0, len(ids) - n_positions))], *ids[-n_positions:]]
