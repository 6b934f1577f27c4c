"""The token ids of given texts, as transformers' tokenizers give them, each within the model's context."""

from __future__ import annotations

from tokenizers import Encoding

from runtime._checks import Prompt, check_vocabulary, shown
from runtime.errors import ContextLengthError
from runtime.model.model import Model
from runtime.model.tokenizer import calls
from runtime.tokenization.encode import check_fits


def ids_of_text(model: Model, text: Prompt, name: str) -> list[int]:
    """The ids of a text, with what the tokenizer puts around it; those of a text that is ids as they are.

    name: of the text, for messages. Raises ContextLengthError for a text that is longer than the context; ValueError
    for a text without tokens, that the tokenizer has no ids for, or with an id outside the vocabulary; NoTokenizerError
    for a text where the model has no tokenizer.
    """
    if isinstance(text, str):
        return list(encode_with_spans(model, text, name).ids)
    check_length(model, len(text), name, text)
    check_vocabulary(name, text, model.config.vocab_size)
    return text


def encode_with_spans(model: Model, text: str, name: str) -> Encoding:
    """The ids of a text with the characters of each, as `ids_of_text` has them; raises as it does."""
    check_fits(model, text, model.config.n_positions)
    encoding = calls.encode(model.tokenizer, text, whole=True, vocab_size=model.config.vocab_size)
    check_length(model, len(encoding.ids), name, text)
    return encoding


def check_length(model: Model, n: int, name: str, text: Prompt) -> None:
    """Raise ValueError for no tokens, ContextLengthError for more than the context has room for."""
    n_positions = model.config.n_positions
    if not n:
        raise ValueError(f"{name} is {shown(text)}, which has no tokens of this model; give a text that has one")
    if n > n_positions:
        raise ContextLengthError(
            f"{name} has {n:,} tokens, and the model has {n_positions:,} positions: shorten it, or give its parts",
            n,
            n_positions=n_positions,
        )
