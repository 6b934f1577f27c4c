"""Text to ids, and the text of a continuation up to its stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer, pre_tokenizers

from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.tokenization.detokenizer import REPLACEMENT, PieceDecoder

__all__ = ["REPLACEMENT", "PieceDecoder", "StopFilter", "TextWriter", "encode", "encode_prompt", "encode_whole"]
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


class TextWriter:
    """The text of a continuation as its ids come, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], stops: Sequence[str], n_hidden: int = 0) -> None:
        """`context`: the ids before the first; `n_hidden`: characters at the beginning that are the prompt's own."""
        self._decoder, self._filter, self._stops = PieceDecoder(tokenizer, context), StopFilter(stops), stops
        self._n_hidden = n_hidden

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._filter.stopped

    def push(self, id_: int) -> str:
        """The text that is certain now; once `stopped`, the last of it."""
        name = self._decoder.hidden_text(id_)
        if not any(name in stop or stop in name for stop in self._stops if name):
            return self._show(self._decoder.push(id_))
        # what is unfinished stands before the special token, whose name is part of a stop string
        before = self._show(self._decoder.flush())
        return before + self._filter.push(name, is_shown=False)

    def flush(self) -> str:
        """What is left at the end of the ids."""
        return self._show(self._decoder.flush()) + self._filter.flush()

    def _show(self, piece: str) -> str:
        hidden, self._n_hidden = piece[: self._n_hidden], max(0, self._n_hidden - len(piece))
        return self._filter.push(piece[len(hidden) :])


class StopFilter:
    """The text before the first stop string to be complete. What may begin a stop string is held back.

    A stop string is found in the text that is shown, and in the text with its special tokens written out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self._shown: list[int] = []  # places in `_held` of the characters that are not a special token's
        self.stopped = False

    def push(self, piece: str, *, is_shown: bool = True) -> str:
        """The text that is certain now; once `stopped`, the last of it. `is_shown`: false for a special token."""
        if not self._stops or self.stopped:
            return piece if is_shown and not self.stopped else ""
        if is_shown:
            self._shown += range(len(self._held), len(self._held) + len(piece))
        self._held += piece
        found = [place for stop in self._stops for place in self._places(stop)]
        if found:
            self.stopped = True
            return self._take(min(found)[1])
        return self._take(min(self._begin(stop) for stop in self._stops))

    def flush(self) -> str:
        """What was held back for a stop string that did not come."""
        held = self._take(len(self._held))
        return "" if self.stopped else held

    def _places(self, stop: str) -> Iterator[tuple[int, int]]:
        """End and beginning of a stop string in what is held."""
        if (begin := self._held.find(stop)) >= 0:
            yield begin + len(stop), begin
        if len(self._shown) < len(self._held) and (begin := self._visible.find(stop)) >= 0:
            yield self._shown[begin + len(stop) - 1] + 1, self._shown[begin]

    def _begin(self, stop: str) -> int:
        """Where in what is held the stop string may have begun; its end where it has not."""
        begin = len(self._held) - _overlap(self._held, stop)
        if len(self._shown) < len(self._held) and (n := _overlap(self._visible, stop)):
            return min(begin, self._shown[len(self._shown) - n])
        return begin

    @property
    def _visible(self) -> str:
        return "".join(self._held[place] for place in self._shown)

    def _take(self, n: int) -> str:
        """Let the first n characters go; returns those of them that are shown."""
        taken = "".join(self._held[place] for place in self._shown if place < n)
        self._held, self._shown = self._held[n:], [place - n for place in self._shown if place >= n]
        return taken


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
