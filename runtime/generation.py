"""Prefill and decode loops: ids -> ids -> pieces of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runtime.cache import Cache, Logits
from runtime.model import Model
from runtime.options import Options
from runtime.sampling import Sampler, make_sampler
from runtime.text import cut_at_stop, decode_pieces

PREFILL_STEP = 256  # positions in one pass: bounds the memory of long prompts


def prefill(cache: Cache, ids: Sequence[int]) -> Logits:
    """Fill the cache with the prompt; returns the logits [n_vocab] after its last token.

    Passes end on multiples of PREFILL_STEP, wherever they begin, since int8 logits depend a little on the cuts.
    """
    logits: Logits | None = None
    while ids:
        n = PREFILL_STEP - cache.length % PREFILL_STEP
        logits, ids = cache.extend(ids[:n])[-1], ids[n:]
    if logits is None:
        raise ValueError("there is nothing to predict from: the prompt has no ids")
    return logits


def generate_ids(model: Model, prompt_ids: Sequence[int], sampler: Sampler, max_new_tokens: int) -> Iterator[int]:
    """Ids that continue the prompt, up to the end-of-text token, which is left out, or max_new_tokens."""
    cache = model.new_cache(len(prompt_ids) + max_new_tokens)
    logits = prefill(cache, prompt_ids)
    for step in range(max_new_tokens):
        id_ = sampler(logits, step)
        if id_ in model.config.eos_token_ids:
            return
        yield id_
        if step + 1 < max_new_tokens:
            logits = cache.extend([id_])[-1]


def generate_pieces(model: Model, prompt_ids: Sequence[int], options: Options) -> Iterator[str]:
    """The continuation as text, piece by piece, up to a stop string."""
    ids = generate_ids(model, prompt_ids, make_sampler(options), options.max_new_tokens)
    return cut_at_stop(decode_pieces(model.tokenizer, ids, prompt_ids), options.stops)


def check_length(n_prompt: int, max_new_tokens: int, n_positions: int) -> None:
    """Raise ValueError unless prompt and continuation fit into the model's context."""
    if n_prompt + max_new_tokens <= n_positions:
        return
    room = n_positions - n_prompt
    cure = f"max_new_tokens can be at most {room}" if room > 0 else f"the prompt must be under {n_positions} tokens"
    asked = f"a prompt of {n_prompt} tokens and max_new_tokens {max_new_tokens}"
    raise ValueError(f"{asked} pass the model's {n_positions} positions; {cure}")
