"""Text to ids."""

from __future__ import annotations

from tokenizers import Encoding, Tokenizer, pre_tokenizers

from runtime._checks import Prompt, check_valid_text
from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.model.tokenizer.detokenizer import PieceDecoder

__all__ = [
    "LONG",
    "PieceDecoder",
    "beginning_of_text",
    "check_fits",
    "encode",
    "encode_prompt",
    "encode_prompt_with_spans",
    "encode_text",
    "encode_whole",
    "has_beginning_of_text",
    "ids_of_prompt",
]
# characters: a shorter text is tokenized in a fifth of a second, whatever it contains
LONG = 100_000


def encode(model: Model, text: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a text alone; `<|endoftext|>` and its like written in it are text, or tokens with `special_tokens`.

    Written special tokens are found as transformers finds them: with the white space that a token takes, and
    whatever its normalization says. Raises TypeError for what is not a str; ValueError for a text that is not valid
    Unicode, that the tokenizer has no ids for, or that has an id beyond the model's vocabulary.

    >>> model = runtime.load("models/demo-int8")
    >>> model.tokenizer.decode(encode(model, "Once upon a time"))
    'Once upon a time'
    """
    return list(_encode(model, text, special_tokens=special_tokens, whole=False).ids)


def encode_whole(model: Model, text: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a text as `tokenizer(text)` of transformers gives them: with what its post-processor puts around it.

    For GPT-2 that is nothing; with `add_bos_token`, say, it is bos_token before the text. Raises as `encode` does.
    """
    return list(_encode(model, text, special_tokens=special_tokens, whole=True).ids)


def _encode(model: Model, text: str, *, special_tokens: bool, whole: bool) -> Encoding:
    check_valid_text(text)
    tokenizer = model.special_tokenizer if special_tokens else model.tokenizer
    return calls.encode(tokenizer, text, whole=whole, vocab_size=model.config.vocab_size)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text alone by a tokenizer without its model. Raises ValueError for a text that it has no ids for.

    >>> tokenizer = Tokenizer.from_file("models/demo/tokenizer.json")
    >>> tokenizer.decode(encode_text(tokenizer, "Once upon a time"))
    'Once upon a time'
    """
    return list(calls.encode(tokenizer, text, whole=False).ids)


def check_fits(model: Model, text: str, n_tokens: int) -> None:
    """Raise ValueError for a text that is more than n_tokens tokens whichever they are, before it is tokenized.

    A megabyte takes 200 MB to tokenize, and seconds where it is one long word. Raises TypeError as
    `check_valid_text` does.
    """
    check_valid_text(text)
    if len(text) <= LONG:
        return
    longest = _longest_token(model.tokenizer)
    # rounded up
    least = 0 if longest is None else -(-len(text) // longest)
    if least > n_tokens:
        told = f"a text of {len(text):,} characters is at least {least:,} tokens, and {n_tokens:,} fit"
        raise ContextLengthError(f"{told}: shorten it", least, n_positions=model.config.n_positions)


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """Characters of a text that one token is at most. Known for byte-level BPE alone; None for other tokenizers."""
    if tokenizer.normalizer is not None or not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return None
    # such a token takes any amount of white space
    if any(token.lstrip or token.rstrip for token in calls.added_tokens(tokenizer).values()):
        return None
    return max(map(len, calls.vocabulary(tokenizer)))


def encode_prompt(model: Model, prompt: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a prompt, as transformers' text-generation pipeline feeds them: those of `encode_whole`.

    An empty prompt begins with bos_token_id, as the model's training texts do. Raises as `encode` does, and
    ValueError for a prompt of which the vocabulary has nothing.

    >>> encode_prompt(runtime.load("models/demo-int8"), "")
    [0]
    """
    ids, _ = encode_prompt_with_spans(model, prompt, special_tokens=special_tokens)
    return ids


def encode_prompt_with_spans(
    model: Model, prompt: str, *, special_tokens: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode_prompt`, and of each the begin and end of its characters; (0, 0) for what was put around."""
    if not (prompt or model.has_tokenizer):
        return [beginning_of_text(model)], [(0, 0)]
    encoding = _encode(model, prompt, special_tokens=special_tokens, whole=True)
    if prompt.strip() and all(encoding.special_tokens_mask):
        raise ValueError(f"this model's vocabulary has no token for anything in the prompt {calls.short(prompt)}")
    if not encoding.ids:
        return [beginning_of_text(model)], [(0, 0)]
    return list(encoding.ids), list(encoding.offsets)


def ids_of_prompt(model: Model, prompt: Prompt, *, special_tokens: bool = False) -> list[int]:
    """The ids of `encode_prompt`; those of a prompt that is token ids are taken as they are, and nothing is added.

    >>> ids_of_prompt(runtime.load("models/demo-int8"), [5, 6])
    [5, 6]
    """
    return encode_prompt(model, prompt, special_tokens=special_tokens) if isinstance(prompt, str) else prompt


def beginning_of_text(model: Model) -> int:
    """bos_token_id. Raises ValueError where the model has none within its vocabulary, as a GPT has none.

    >>> beginning_of_text(runtime.load("models/demo-int8"))
    0
    """
    bos = model.config.bos_token_id
    if bos is None or not has_beginning_of_text(model):
        raise ValueError(
            "the prompt or context has no tokens, and this model has no beginning-of-text token to begin with; "
            "give a text"
        )
    return bos


def has_beginning_of_text(model: Model) -> bool:
    """Whether bos_token_id is within the model's vocabulary.

    >>> has_beginning_of_text(runtime.load("models/demo-int8"))
    True
    """
    bos = model.config.bos_token_id
    return bos is not None and 0 <= bos < model.config.vocab_size
