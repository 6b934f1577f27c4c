"""Errors that a caller can tell apart. Each is a subclass of the built-in exception that fits, so catching that works.

What is wrong with a call itself, such as an unknown keyword or a number where a text belongs, is a plain TypeError.

    try:
        text = runtime.generate(prompt, max_new_tokens=200)
    except runtime.ContextLengthError as error:
        text = runtime.generate(prompt, max_new_tokens=error.n_positions - error.n_prompt)
"""

from __future__ import annotations


class OptionError(ValueError):
    """An option has a value out of its range, or does not go with another option.

    options: the names of the options that are to blame.
    """

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


class ContextLengthError(ValueError):
    """A text has more tokens than the model has positions. Shorten the text, or choose another `overflow`.

    n_prompt: tokens of the prompt, of the text or of context and continuation together; the least that it can have
        where the text was refused by its length, before it was tokenized.
    max_new_tokens: tokens that were to be generated after it; 0 for a text that is scored.
    n_positions: tokens that the model can see at once.
    """

    def __init__(self, message: str, n_prompt: int = 0, max_new_tokens: int = 0, n_positions: int = 0) -> None:
        super().__init__(message)
        self.n_prompt = n_prompt
        self.max_new_tokens = max_new_tokens
        self.n_positions = n_positions


class NoTokenError(ValueError):
    """The options leave no token to choose, so the text ends early. `stream` has yielded the text so far.

    n_new: tokens that were generated before.
    prompt_index: which of several prompts.
    """

    def __init__(self, message: str, n_new: int = 0, prompt_index: int = 0) -> None:
        super().__init__(message)
        self.n_new = n_new
        self.prompt_index = prompt_index


class ModelFolderError(ValueError):
    """A model folder is damaged, incomplete, or holds something else than a GPT-2. Copy or build it again."""


class NoTokenizerError(ValueError):
    """A text is given to a model without a tokenizer, or asked of it. Give token ids, and read ids."""


class PrefixFileError(ValueError):
    """A prefix file is damaged, or was made with another model or machine. Make it again with `runtime.prefix`."""


class NoModelError(FileNotFoundError):
    """No model is named and none is built under ./models, or the folder that is named does not exist."""


class MemoryBudgetError(MemoryError):
    """A model, a batch or a prefix would pass the `max_memory` of `runtime.load`.

    needed: bytes that it takes.
    taken: bytes that are taken already.
    max_memory: bytes that may be taken in all.
    """

    def __init__(self, message: str, needed: int = 0, taken: int = 0, max_memory: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.taken = taken
        self.max_memory = max_memory
