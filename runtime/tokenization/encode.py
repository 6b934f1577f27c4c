"""Text to ids."""

from __future__ import annotations

from tokenizers import Encoding, Tokenizer, pre_tokenizers

from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.tokenization.detokenizer import REPLACEMENT, PieceDecoder

__all__ = ["REPLACEMENT", "PieceDecoder", "encode", "encode_prompt", "encode_whole"]
_SHOWN = 24  # characters of a prompt in an error
LONG = 100_000  # characters: shorter texts are tokenized in a fifth of a second, whatever they hold


def encode(model: Model, text: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a text alone; `<|endoftext|>` and its like written in it are text, or tokens with `special_tokens`.

    Written special tokens are found as transformers finds them: with the white space that a token takes, and
    whatever its normalization says. Raises TypeError or ValueError for what is no text, and for a text that the
    tokenizer has no ids for.
    """
    return list(_encode(model, text, special_tokens=special_tokens, whole=False).ids)


def encode_whole(model: Model, text: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a text as `tokenizer(text)` of transformers gives them: with what its post-processor puts around it.

    For GPT-2 that is nothing; `add_bos_token`, say, puts bos_token before. Raises as `encode` does.
    """
    return list(_encode(model, text, special_tokens=special_tokens, whole=True).ids)


def _encode(model: Model, text: str, *, special_tokens: bool, whole: bool) -> Encoding:
    check_text(text)
    return run_tokenizer(model.special_tokenizer if special_tokens else model.tokenizer, text, whole=whole)


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text alone by a tokenizer. Raises ValueError for a text that it has no ids for."""
    return list(run_tokenizer(tokenizer, text, whole=False).ids)


def run_tokenizer(tokenizer: Tokenizer, text: str, *, whole: bool) -> Encoding:
    """What a tokenizer makes of a text, `whole` with what it puts around it. Raises ValueError for what it refuses."""
    try:
        return tokenizer.encode(text, add_special_tokens=whole)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(_explain(tokenizer, text, error)) from None


def _explain(tokenizer: Tokenizer, text: str, error: Exception) -> str:
    """Why a text has no ids, with the word that is to blame where one is."""
    reason = " ".join(str(error).split())
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    parts = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else [(normalized, None)]
    for word, _ in parts:
        try:
            tokenizer.model.tokenize(word)
        except Exception:  # again a bare one
            return f"this model's vocabulary has no token for {word!r}, and none for unknown words ({reason})"
    return f"the tokenizer cannot encode the text: {reason}"


def check_text(text: object) -> None:
    """Raise TypeError or ValueError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate at character {error.start}: it is not valid Unicode") from None


def check_fits(model: Model, text: str, n_tokens: int) -> None:
    """Raise ValueError for a text that is more than so many tokens, whichever they are: before it is tokenized.

    A megabyte takes 200 MB to tokenize, and seconds where it is one long word. Raises TypeError as `check_text` does.
    """
    check_text(text)
    if len(text) <= LONG:
        return
    longest = _longest_token(model.tokenizer)
    least = 0 if longest is None else -(-len(text) // longest)
    if least > n_tokens:
        told = f"a text of {len(text):,} characters is at least {least:,} tokens, and {n_tokens:,} fit"
        raise ContextLengthError(f"{told}: shorten it", least, n_positions=model.config.n_positions)


def _longest_token(tokenizer: Tokenizer) -> int | None:
    """Characters of a text that one token is at most; None where that is not known, as of all but byte-level BPE."""
    grows = any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
    if grows or tokenizer.normalizer is not None or not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        return None
    return max(map(len, tokenizer.get_vocab()))


def encode_prompt(model: Model, prompt: str, *, special_tokens: bool = False) -> list[int]:
    """Ids of a prompt, as transformers' text-generation pipeline feeds them: those of `encode_whole`.

    An empty prompt begins with bos_token_id, as the model's training texts do. Raises as `encode` does, and
    ValueError for a prompt of which the vocabulary has nothing.
    """
    return encode_prompt_with_spans(model, prompt, special_tokens=special_tokens)[0]


def encode_prompt_with_spans(
    model: Model, prompt: str, *, special_tokens: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode_prompt`, and of each the begin and end of its characters; (0, 0) for what was put around."""
    encoding = _encode(model, prompt, special_tokens=special_tokens, whole=True)
    if prompt.strip() and all(encoding.special_tokens_mask):
        raise ValueError(f"this model's vocabulary has no token for anything in the prompt {_short(prompt)}")
    return (list(encoding.ids), list(encoding.offsets)) if encoding.ids else ([beginning_of_text(model)], [(0, 0)])


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def beginning_of_text(model: Model) -> int:
    """bos_token_id. Raises ValueError where the model has none."""
    bos = model.config.bos_token_id
    if bos is None or not 0 <= bos < model.config.vocab_size:
        raise ValueError("the prompt is empty and this model has no beginning-of-text token; give a prompt")
    return bos
