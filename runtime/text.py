"""Text to ids and back: prompts in, streamed pieces out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from runtime.model import Model

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
CONTEXT_IDS = 4  # enough for a decoder that looks at its neighbours


def encode(model: Model, text: str) -> list[int]:
    """Ids of a text; special tokens written in it are text. Raises TypeError or ValueError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate at character {error.start}: it is not valid Unicode"
        ) from None
    ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def encode_prompt(model: Model, prompt: str) -> list[int]:
    """Ids of a prompt; an empty one begins with bos_token_id, as the model's training texts do."""
    ids = encode(model, prompt)
    if ids:
        return ids
    bos = model.config.bos_token_id
    if bos is None or not 0 <= bos < model.config.vocab_size:
        raise ValueError("the prompt is empty and this model has no beginning-of-text token; give a prompt")
    return [bos]


def decode_pieces(tokenizer: Tokenizer, ids: Iterable[int], context: Sequence[int] = ()) -> Iterator[str]:
    """Text of ids as they come. No piece ends inside a character: what is unfinished waits for its other bytes.

    `context`: the ids before the first, for decoders that put a space between words. Joined, the pieces are what
    the tokenizer makes of all ids at once, bytes that are no character at the end included.
    """
    window = list(context[-CONTEXT_IDS:])
    shown = text = tokenizer.decode(window)
    for id_ in ids:
        window.append(id_)
        text = tokenizer.decode(window)
        if text.endswith(REPLACEMENT):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :]
        window = window[-CONTEXT_IDS:]
        shown = text = tokenizer.decode(window)
    if len(text) > len(shown):
        yield text[len(shown) :]


def cut_at_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text before the first stop string to be complete. What may begin a stop string is held back."""
    held = ""
    for piece in pieces:
        held += piece
        matches = [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]
        if matches:
            held = held[: min(matches)[1]]
            break
        safe = len(held) - max((_overlap(held, stop) for stop in stops), default=0)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
