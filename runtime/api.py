"""The public functions. Each checks its arguments, opens the model, and calls the module that does the work.

The options in signatures and docstrings are written by `python -m tests.support.signatures`, from `runtime.options`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from runtime._checks import Prompt, check_count, check_flag, check_prompt, check_prompt_ids, check_prompts
from runtime._lock import importing
from runtime.errors import NoTokenizerError, OptionError
from runtime.generation import loop as generation
from runtime.generation.completion import Completion
from runtime.generation.speculation.proposers import open_draft
from runtime.model.integrity import Verify
from runtime.model.model import Model
from runtime.model.resolve import ModelOrPath, check_path, find, resolve
from runtime.options import (
    OPTIONS,
    TASK_DEFAULT,
    LogitsProcessor,
    Options,
    Overflow,
    TaskDefault,
    check_seed,
    make_seeded,
    pick_options,
)
from runtime.prefixes import prefix as prefixes
from runtime.prefixes.prefix import Prefix

# Modules that only some functions need are imported where they are used, so that importing this one stays quick.
if TYPE_CHECKING:
    from runtime.heads.classification import Classification, TokenClassification
    from runtime.heads.embedding import Pooling
    from runtime.scoring.perplexity import Progress
    from runtime.scoring.scoring import Score, ScoreOverflow
    from runtime.scoring.surprisal import Surprisal
    from runtime.tasks.infill import Middle
    from runtime.tasks.perform import Answer, Task

MAX_SAMPLES = 2**16  # continuations of one prompt: each has a row, which is made before any is decoded
BEST_OF = 8  # middles of `infill`
One = str | list[int]  # a text, or its token ids
Several = list[str] | list[list[int]] | tuple[str, ...]
Floats = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")


def _explains_unknown_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Raise TypeError for a keyword that the function does not have, with the name that was meant.

    Python's own error does not know the names that other tools have for an option.
    """
    code = function.__code__
    names = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    @functools.wraps(function)
    def checked(*given: P.args, **named: P.kwargs) -> R:
        for name in named:
            if name not in names:
                # Only where something is wrong: importing the package stays quick.
                from runtime.option_names import explain_unknown

                raise TypeError(explain_unknown(name, OPTIONS))
        return function(*given, **named)

    return checked


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    verify: Verify | None = None,
    expect: str | None = None,
    max_memory: int | None = None,
    cache: Literal["fp32", "int8"] | None = None,
) -> Model:
    """Open a model folder: one that `export/build.py` made, or a plain optimum export of GPT-2 with past-key-values.

    Args:
        path: the folder; None is the one in $GPT2_EDGE_MODEL, else the only built model under ./models, else that of
            gpt2-edge-demo where it is installed, which is then said once on standard error.
        threads: for the products within a pass; None takes every physical core that the process may use.
        verify: what is checked before anything of the folder is opened.
            "full": every byte of every file, by SHA256SUMS; an error where there is none.
            "size": that the files are there, with the sizes that a full check recorded; that no link and no path in
            the graph leads out of the folder; that no operator is custom.
            "off": nothing. Trust the folder then, since the parsers read its bytes unchecked.
            None: "full" at first. A stamp in the user's cache ($GPT2_EDGE_CACHE names another folder) records device,
            inode, size, times and owner of every file that was checked; from then on it suffices that they are the
            same. Without a cache to write to, "full" every time. A plain export has no checksums: None and "size"
            check the rest.
        expect: the SHA-256 of the folder's SHA256SUMS, which pins the model: checksums alone prove no authorship.
            Every byte is then read at every load.
        max_memory: bytes that this process may have in memory by `estimate`. A model that would pass it is refused
            before it is opened, and so is a batch or a prefix that would, together with those that are open.
        cache: the type of keys and values. "int8" takes a quarter of the memory and decodes faster in long contexts,
            at a small loss that the build has measured; "fp32" loses nothing. None takes "int8" where the build wrote
            a graph for it, as it does at int8 and int4, and "fp32" otherwise.

    Returns:
        The model. `close()`, or leaving `with`, frees its memory. It is of one state of the folder: where the folder
        changes meanwhile, the load begins again, and gives up after some times. Afterwards, on Linux, nothing that
        happens to the files changes the model. On other systems some weights stay mapped from the file: one that was
        overwritten is noticed when the next batch begins, and one that is truncated during a pass ends the process.
        Replace model folders as a whole, by renaming. SECURITY.md has the details.

    Raises:
        NoModelError: no model is named and none is built, or there is no such folder.
        FileNotFoundError: a file of the folder is missing.
        ModelFolderError: the folder is damaged, holds something else than a GPT-2, or has no graph for
            `cache="int8"`.
        ValueError: several models are built and none is named.
        MemoryBudgetError: the model would pass `max_memory`.

    Example:
        >>> with runtime.load("models/demo-int8", threads=1) as model:
        ...     runtime.generate("Once upon a time", model=model, max_new_tokens=6)
        ", the King's son was"

    """
    folder = Path(find() if path is None else check_path(path))
    return Model(folder, threads=threads, verify=verify, expect=expect, max_memory=max_memory, cache=cache)


@_explains_unknown_keywords
def generate(
    prompt: str | Sequence[int],
    *,
    model: ModelOrPath = None,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*"),
    logit_bias: Mapping[int, float] | None = None,
    suppress_ids: Sequence[int] = (),
    banned: str | Sequence[str] = (),
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lookup: int = 0,
    seed: int | None = None,
    overflow: Overflow = "error",
    pinned_tokens: int = 0,
    special_tokens: bool = False,
    token_healing: bool = False,
    logits_processor: LogitsProcessor | None = None,
    deadline: float | None = None,
    cancel: Callable[[], bool] | None = None,
) -> str:
    """The continuation of a prompt: the text that follows it, without the prompt itself.

    Without options 64 tokens, greedy: the likeliest each time, as every function here does by default. Greedy text
    soon repeats itself; temperature=0.8, top_p=0.9 writes more freely.

    Options have the names of transformers where it has the same option and name; where it has another name, the
    description says which.

    Args:
        prompt: any text; an empty one starts from the beginning of a text. Its ids are those that transformers'
            text-generation pipeline feeds: what the tokenizer puts around a text (for GPT-2 nothing) is there, too.
            Or token ids, a list of ints, which are taken as they are.
        model: a Model, the path of a model folder, or None: the folder in $GPT2_EDGE_MODEL, else the only built model
            under ./models, else the installed demo. A path or None is loaded at its first use and kept.
        prefix: what the prompt begins with, computed before; the continuation is the same, and comes sooner. See
            `prefix`.
        draft: a smaller model of the same vocabulary that proposes tokens (speculative decoding), so that the text
            comes in fewer passes. At fp32 the text is the same, unless two tokens are equally likely to the last
            bits; at int8 and int4 some texts differ: see `runtime.generation.speculation.step`. (transformers:
            assistant_model; llama.cpp: --model-draft)
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: the same seed gives the same text; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)

    Returns:
        The text.

    Raises:
        TypeError: an option has a wrong type, or there is no such option.
        OptionError: an option is out of range, or does not go with another.
        ContextLengthError: prompt and max_new_tokens pass the model's n_positions, and `overflow` is "error".
        NoTokenError: options such as suppress_ids leave no token to choose.
        NoModelError: no model is found.

    Example:
        >>> runtime.generate("Once upon a time", model=model, max_new_tokens=12)
        ", the King's son was sitting on a tree, and"
        >>> runtime.generate("Once upon a time", model=model, max_new_tokens=12, stop=",")
        ''

    """
    return "".join(stream(**locals()))


@_explains_unknown_keywords
def stream(
    prompt: str | Sequence[int],
    *,
    model: ModelOrPath = None,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*"),
    logit_bias: Mapping[int, float] | None = None,
    suppress_ids: Sequence[int] = (),
    banned: str | Sequence[str] = (),
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lookup: int = 0,
    seed: int | None = None,
    overflow: Overflow = "error",
    pinned_tokens: int = 0,
    special_tokens: bool = False,
    token_healing: bool = False,
    logits_processor: LogitsProcessor | None = None,
    deadline: float | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they are decoded. No piece ends inside a character.

    The pieces join to what `generate` returns. Closing the iterator ends the work.

    Args:
        prompt: a text or token ids, as for `generate`.
        model: as for `generate`.
        prefix: as for `generate`.
        draft: as for `generate`.
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: the same seed gives the same text; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)

    Returns:
        An iterator over pieces of text, none of them empty.

    Raises:
        TypeError, OptionError, ContextLengthError, NoModelError: as `generate` does, at the call itself.
        NoTokenError: as `generate` does, after the last piece.

    Example:
        >>> for piece in runtime.stream("Once upon a time", model=model, max_new_tokens=6):
        ...     print(piece, end="|")
        ,| the| King|'s| son| was|

    """
    options = Options(**pick_options(locals()))
    check_seed(options)
    given = check_prompt("prompt", prompt)
    opened = prefixes.open_model(model, prefix)
    _check_texts_are_known(opened)
    _check_given_ids("prompt", [given], opened, options, is_one=True)
    rows = generation.make_rows(opened, [given], [options], prefix=prefix)
    proposer = open_draft(draft, opened, options.lookup)
    return (piece for _, piece in generation.stream_pieces(opened, rows, draft=proposer) if piece)


@_explains_unknown_keywords
def stream_many(
    prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
    *,
    model: ModelOrPath = None,
    batch_size: int = generation.BATCH_SIZE,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*"),
    logit_bias: Mapping[int, float] | None = None,
    suppress_ids: Sequence[int] = (),
    banned: str | Sequence[str] = (),
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lookup: int = 0,
    seed: int | None = None,
    overflow: Overflow = "error",
    pinned_tokens: int = 0,
    special_tokens: bool = False,
    token_healing: bool = False,
    logits_processor: LogitsProcessor | None = None,
    deadline: float | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, str]]:
    """The continuations of several prompts, decoded together, in pieces as they come.

    The pieces of each prompt join to what `generate` returns for it.

    Args:
        prompts: texts, or lists of token ids.
        model: as for `generate`.
        batch_size: how many continuations decode at a time; the others wait.
        prefix: what all prompts begin with, as for `generate`.
        draft: as for `generate`.
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: the same seed gives the same text; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)

    Returns:
        An iterator over (index of the prompt, piece of its continuation); no piece is empty.

    Raises:
        TypeError, OptionError, ContextLengthError, NoModelError: as `generate` does, at the call itself.
        NoTokenError: as `generate` does, after the last piece of all.

    Example:
        >>> prompts = ["And so they lived happily ever", "The wolf and the"]
        >>> for index, piece in runtime.stream_many(prompts, model=model, max_new_tokens=2):
        ...     print(index, repr(piece))
        0 ' after'
        1 ' wolf'
        0 '.'
        1 ','

    """
    options = Options(**pick_options(locals()))
    check_seed(options)
    texts, is_one = check_prompts("prompts", prompts)
    check_count("batch_size", batch_size)
    opened = prefixes.open_model(model, prefix)
    _check_texts_are_known(opened)
    _check_given_ids("prompts", texts, opened, options, is_one=is_one)
    rows = generation.make_rows(opened, texts, [options] * len(texts), prefix=prefix)
    pieces = generation.stream_pieces(opened, rows, batch_size, open_draft(draft, opened, options.lookup))
    return ((row.place.prompt_index, piece) for row, piece in pieces if piece)


@_explains_unknown_keywords
def complete(
    prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
    *,
    model: ModelOrPath = None,
    n: int = 1,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    logprobs: int = 0,
    batch_size: int = generation.BATCH_SIZE,
    prefix: Prefix | None = None,
    draft: ModelOrPath = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*"),
    logit_bias: Mapping[int, float] | None = None,
    suppress_ids: Sequence[int] = (),
    banned: str | Sequence[str] = (),
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lookup: int = 0,
    seed: int | Sequence[int] | None = None,
    overflow: Overflow = "error",
    pinned_tokens: int = 0,
    special_tokens: bool = False,
    token_healing: bool = False,
    logits_processor: LogitsProcessor | None = None,
    deadline: float | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Continuations with all that is known of them: ids, log-probabilities, why they ended, how long they took.

    Every one is decoded as if it were alone. One whose options leave no token to choose ends there, with
    finish_reason "no_token"; the others go on.

    Args:
        prompts: one text or several. A list of ints is one prompt of token ids, a list of such lists several.
        model: as for `generate`.
        n: continuations for each prompt, 65,536 at most; more than one needs a temperature above 0, or beams.
            (transformers: num_return_sequences)
        num_beams: above 1, search with so many beams and return the `n` best, best first, as transformers' beam search
            does. Prompts are searched one after the other; see `runtime.generation.beam_search.search`.
        length_penalty: beams compare by log-probability / length ** length_penalty; above 0 favours long ones.
        early_stopping: True ends the search once num_beams continuations are finished; False, when the running ones
            are no better at their present length; "never", when they cannot become better.
        logprobs: how many alternatives to record for each token.
        batch_size: how many continuations decode at a time; the others wait. With beams it has no effect: all beams of
            a prompt decode together.
        prefix: what all prompts begin with, as for `generate`.
        draft: as for `generate`.
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: one for every prompt, or a sequence with one for each; the same seed gives the same
            `n` continuations; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)

    Returns:
        A Completion for each continuation: `n` of the first prompt, `n` of the second, and so on.

    Raises:
        TypeError, OptionError, ContextLengthError, NoModelError: as `generate` does.
        ValueError: n, num_beams, length_penalty or early_stopping do not go together, or with the model.

    Example:
        >>> best, second = runtime.complete("Once upon a time", model=model, n=2, num_beams=4, max_new_tokens=8)
        >>> best.logprob >= second.logprob
        True
        >>> [one] = runtime.complete("Once upon a time", model=model, max_new_tokens=6, logprobs=3)
        >>> one.text, one.finish_reason, len(one.top_logprobs[0])
        (", the King's son was", 'length', 3)

    """
    given = pick_options(locals())
    texts, is_one = check_prompts("prompts", prompts)
    options = make_seeded(given, given.pop("seed"), len(texts))
    _check_counts(n, num_beams, batch_size, logprobs)
    opened = prefixes.open_model(model, prefix)
    if logprobs > opened.config.vocab_size:
        raise ValueError(f"logprobs is {logprobs}; the model has {opened.config.vocab_size} tokens")
    _check_given_ids("prompts", texts, opened, options[0], is_one=is_one)
    proposer = open_draft(draft, opened, options[0].lookup)
    if num_beams > 1:
        if proposer or options[0].lookup:
            raise OptionError(f"lookup and draft do not go with num_beams {num_beams}; leave one of them out", "lookup")
        with importing:
            from runtime.generation import beam_search

        shape = beam_search.Beams(num_beams, n, length_penalty, early_stopping, logprobs)
        return beam_search.search(opened, texts, options[0], shape, prefix)
    if length_penalty != 1 or early_stopping is not False:
        raise ValueError("length_penalty and early_stopping are for beam search; set num_beams above 1")
    check_samples(options[0], n)
    rows = generation.make_rows(opened, texts, options, n, logprobs, prefix)
    for _ in generation.generate_pieces(opened, rows, batch_size, proposer):
        pass
    return [row.completion() for row in rows]


def _check_texts_are_known(model: Model) -> None:
    """Raise NoTokenizerError for a model that writes no text."""
    if not model.has_tokenizer:
        raise NoTokenizerError(
            f"{model.folder} has no tokenizer and writes no text; runtime.complete gives the ids that it generates"
        )


def _check_given_ids(name: str, prompts: Sequence[Prompt], model: Model, options: Options, *, is_one: bool) -> None:
    """Raise ValueError for token ids outside the vocabulary, and for an option that has no effect on them."""
    check_prompt_ids(name, prompts, model.config.vocab_size, is_one=is_one)
    if options.special_tokens and not any(isinstance(prompt, str) for prompt in prompts):
        raise OptionError(
            "special_tokens=True is about what is written in a text, and token ids are given; leave it out",
            "special_tokens",
        )


def check_samples(options: Options, n: int) -> None:
    """Raise ValueError for a seed where nothing is drawn, and for `n` samples that would all be the same."""
    check_seed(options)
    if n > 1 and options.temperature == 0:
        raise ValueError(f"n is {n}, but at temperature 0 all samples are the same; set temperature or num_beams")


def _check_counts(n: int, num_beams: int, batch_size: int, logprobs: int) -> None:
    """Raise TypeError or ValueError for the first that is out of range."""
    check_count("n", n, most=MAX_SAMPLES)
    check_count("num_beams", num_beams, most=MAX_SAMPLES)
    check_count("batch_size", batch_size)
    check_count("logprobs", logprobs, least=0)


@_explains_unknown_keywords
def infill(
    prompt: str | Sequence[int],
    suffix: str | Sequence[int],
    *,
    model: ModelOrPath = None,
    best_of: int = BEST_OF,
    batch_size: int = generation.BATCH_SIZE,
    prefix: Prefix | None = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    no_repeat_ngram_size: int = 0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_sequence_breakers: str | Sequence[str] = ("\n", ":", '"', "*"),
    logit_bias: Mapping[int, float] | None = None,
    suppress_ids: Sequence[int] = (),
    banned: str | Sequence[str] = (),
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    choices: Sequence[str] | None = None,
    regex: str | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    lookup: int = 0,
    seed: int | None = None,
    overflow: Overflow = "error",
    pinned_tokens: int = 0,
    special_tokens: bool = False,
    token_healing: bool = False,
    logits_processor: LogitsProcessor | None = None,
    deadline: float | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Middle]:
    """What may stand between a prompt and a suffix, the likeliest first.

    GPT-2 does not read ahead: it was not trained to write towards an end. So `best_of` middles are sampled after the
    prompt, and ranked by the probability of the suffix after prompt and middle, log P(suffix | prompt, middle). More
    middles find a better one. A middle ends where the options say, so options that fit the gap help most:
    max_new_tokens for a few words, `stop` for a sentence, `regex` or `choices` for a form.

    The cost in tokens that are computed: the prompt and up to best_of * max_new_tokens to write; then to rank, the
    part of the prompt after the last multiple of 256 tokens, and for each different middle its tokens and those of the
    suffix, in passes of many tokens. The prompt is never computed once for each middle.

    Args:
        prompt: a text or token ids, as for `generate`.
        suffix: the text after the gap, or its token ids. A text has the ids that it has alone, so a word begins with
            its space.
        model: as for `generate`.
        best_of: how many middles are sampled and ranked, from 2 to 65,536.
        batch_size: how many middles decode at a time; the others wait.
        prefix: what the prompt begins with, as for `generate`.
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: the same seed gives the same text; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)

    The middles are written with the options; deadline and cancel end the writing, and what is written is ranked.

    Returns:
        Every middle that was sampled, best first: a `runtime.tasks.infill.Middle` with `.text`, with `.completion` as
        `complete` returns it, and with `.suffix`, the Score of the suffix. The first is the answer; others may be equal
        to it.

    Raises:
        TypeError, OptionError, NoModelError: as `generate` does; OptionError for temperature 0, and for an `overflow`,
            since all must fit.
        ContextLengthError: prompt, max_new_tokens and suffix together are more than the model takes.
        ValueError: an empty suffix, or best_of below 2.
        NoTokenizerError: a text, where the model has no tokenizer.

    Example:
        >>> prompt, suffix = "The king lived in", ", and the queen lived there too."
        >>> found = runtime.infill(prompt, suffix, model=model, choices=[" a castle", " ran", " me"], seed=1)
        >>> found[0].text
        ' a castle'

    """
    options = Options(**pick_options(locals()))
    check_count("best_of", best_of, most=MAX_SAMPLES)
    check_count("batch_size", batch_size)
    before = check_prompt("prompt", prompt)
    after = check_prompt("suffix", suffix)
    opened = prefixes.open_model(model, prefix)
    _check_given_ids("prompt", [before], opened, options, is_one=True)
    check_prompt_ids("suffix", [after], opened.config.vocab_size, is_one=True)
    with importing:
        from runtime.tasks import infill as infilling

    return infilling.infill(opened, before, after, options, best_of, batch_size, prefix)


def perform(
    task: str | Task,
    text: str,
    *,
    model: ModelOrPath = None,
    abstain_below: float | None = None,
    prefix: Prefix | None = None,
    max_new_tokens: int | TaskDefault = TASK_DEFAULT,
    min_new_tokens: int | TaskDefault = TASK_DEFAULT,
    temperature: float | TaskDefault = TASK_DEFAULT,
    top_k: int | TaskDefault = TASK_DEFAULT,
    top_p: float | TaskDefault = TASK_DEFAULT,
    min_p: float | TaskDefault = TASK_DEFAULT,
    typical_p: float | TaskDefault = TASK_DEFAULT,
    repetition_penalty: float | TaskDefault = TASK_DEFAULT,
    presence_penalty: float | TaskDefault = TASK_DEFAULT,
    frequency_penalty: float | TaskDefault = TASK_DEFAULT,
    no_repeat_ngram_size: int | TaskDefault = TASK_DEFAULT,
    dry_multiplier: float | TaskDefault = TASK_DEFAULT,
    dry_base: float | TaskDefault = TASK_DEFAULT,
    dry_allowed_length: int | TaskDefault = TASK_DEFAULT,
    dry_sequence_breakers: str | Sequence[str] | TaskDefault = TASK_DEFAULT,
    logit_bias: Mapping[int, float] | TaskDefault | None = TASK_DEFAULT,
    suppress_ids: Sequence[int] | TaskDefault = TASK_DEFAULT,
    banned: str | Sequence[str] | TaskDefault = TASK_DEFAULT,
    stop: str | Sequence[str] | TaskDefault = TASK_DEFAULT,
    stop_ids: Sequence[int] | TaskDefault = TASK_DEFAULT,
    choices: Sequence[str] | TaskDefault | None = TASK_DEFAULT,
    regex: str | TaskDefault | None = TASK_DEFAULT,
    json_schema: Mapping[str, Any] | str | TaskDefault | None = TASK_DEFAULT,
    lookup: int | TaskDefault = TASK_DEFAULT,
    seed: int | TaskDefault | None = TASK_DEFAULT,
    overflow: Overflow | TaskDefault = TASK_DEFAULT,
    pinned_tokens: int | TaskDefault = TASK_DEFAULT,
    special_tokens: bool | TaskDefault = TASK_DEFAULT,
    token_healing: bool | TaskDefault = TASK_DEFAULT,
    logits_processor: LogitsProcessor | TaskDefault | None = TASK_DEFAULT,
    deadline: float | TaskDefault | None = TASK_DEFAULT,
    cancel: Callable[[], bool] | TaskDefault | None = TASK_DEFAULT,
    **fields: Any,
) -> Answer:
    """Do what a task says with a text: P(output | input, task), the GPT-2 paper's zero-shot tasks (2019, section 3).

    Args:
        task: summarize, translate, answer, read, choose, last_word, or a `runtime.tasks.perform.Task` of your own.
            Printed, a task shows its prompt, its fields and its defaults: `print(TASKS["translate"])`, which is in
            `runtime.tasks.perform`, too.
        text: the article, sentence, question, passage ...; white space around it is left out.
        model: as for `generate`.
        abstain_below: an answer whose confidence is under this probability comes back with the text "".
        prefix: what the task's prompt begins with, `find_task(task).beginning(**fields)` or longer. See `prefix`.
        max_new_tokens: generate at most this many tokens. (llama.cpp: --predict)
        min_new_tokens: do not end by eos_token_id or stop_ids before this many tokens; stop strings still end the text.
        temperature: 0 takes the likeliest token each time (greedy); above 0 samples, 1 from the model's own
            distribution. (llama.cpp: --temp)
        top_k: sample from the k likeliest tokens; 0 is off.
        top_p: sample from the likeliest tokens whose probabilities together reach p; 1 is off.
        min_p: do not sample tokens below this share of the likeliest token's probability; 0 is off.
        typical_p: sample from the most typical tokens whose probabilities together reach p; 1 is off. (llama.cpp:
            --typical)
        repetition_penalty: make ids of the prompt and the text less likely: positive logits are divided by it, negative
            ones multiplied; the latest n_positions ids count; 1 is off. (llama.cpp: --repeat-penalty)
        presence_penalty: subtract this from the logit of every id that was generated before; 0 is off.
        frequency_penalty: subtract this from the logit of an id for each time that it was generated before; 0 is off.
        no_repeat_ngram_size: never repeat so many ids in a row, among the latest n_positions; 0 is off.
        dry_multiplier: subtract dry_multiplier * dry_base ** (n - dry_allowed_length) from the logit of an id that
            would prolong a repetition of n ids, n at least dry_allowed_length (DRY, don't repeat yourself); the latest
            n_positions ids count; 0 is off.
        dry_base: how fast the DRY penalty grows with the length of the repetition; needs dry_multiplier.
        dry_allowed_length: the longest repetition, in ids, that DRY leaves at the penalty dry_multiplier; shorter ones
            have none; needs dry_multiplier.
        dry_sequence_breakers: texts across which DRY counts no repetition, instead of line end, colon, double quote and
            asterisk; needs dry_multiplier. (llama.cpp: --dry-sequence-breaker)
        logit_bias: add these numbers to the logits of these ids; inf makes an id certain, -inf forbids it.
            (transformers: sequence_bias)
        suppress_ids: never generate these ids, whatever logit_bias and stop_ids say of them. (transformers:
            suppress_tokens)
        banned: texts that the continuation never contains, with whatever tokens they are written: a token that would
            complete one is not generated; upper and lower case differ.
        stop: end before this text, or before the first of several; the text itself is left out. (transformers:
            stop_strings; llama.cpp: --reverse-prompt)
        stop_ids: end at one of these ids, as at eos_token_id, which still ends the text, too. (transformers:
            eos_token_id)
        choices: write one of these texts (structured output).
        regex: write a match of this regular expression, in Rust's syntax (structured output).
        json_schema: write JSON of this schema, with the spaces of json.dumps (structured output).
        lookup: speculative decoding: propose up to this many tokens at a time, from what followed the same ids earlier
            in the text; one pass checks them. At fp32 the text is the same, unless two tokens are equally likely to the
            last bits; at int8 and int4 some texts differ. 0 is off. (transformers: prompt_lookup_num_tokens)
        seed: the seed of sampling: the same seed gives the same text; None draws one. (transformers: set_seed)
        overflow: when prompt and max_new_tokens pass n_positions: 'error' is an error (ContextLengthError); 'stop' ends
            the text at the last position; 'truncate_left' leaves out the beginning of the prompt; 'slide' writes on,
            and drops the oldest half of the ids whenever the context is full. (transformers: truncation; llama.cpp:
            --context-shift)
        pinned_tokens: with overflow='slide' keep this many ids of the prompt's beginning in the context. (llama.cpp:
            --keep)
        special_tokens: read <|endoftext|> and other special tokens that are written in the prompt as tokens, not as
            text. (transformers: split_special_tokens)
        token_healing: generate the last token of the prompt again, together with what follows: for prompts that end
            inside a word.
        logits_processor: a function of the ids so far (prompt included) and the logits [n_vocab] of the next, as a
            float32 array; it returns the logits to use. It is called once for each token, after the penalties and
            before the sampler.
        deadline: end the text after this many seconds. (transformers: max_time; llama.cpp: t_max_predict_ms)
        cancel: a function that is called before every pass through the model; the text ends when it returns True.
            (transformers: stopping_criteria)
        **fields: the task's own fields. A task with the field `examples` is strictly zero-shot without them,
            `examples=()`: the instruction in plain words and the text.

    Options that are not given are the task's own, or else the defaults of `generate`. Here overflow="truncate_left"
    cuts the beginning of the text, and keeps the rest of the prompt. A task that writes nothing (`choose`,
    `last_word`) takes overflow only.

    Returns:
        An Answer: text, confidence (`runtime.tasks.perform.Answer` says which probability it is), completion.

    Raises:
        TypeError, OptionError, NoModelError: as `generate` does.
        TypeError, ValueError: there is no such task or field, a field is missing or wrong, or the text is empty.
        ContextLengthError: the prompt is too long.

    Example:
        >>> answer = runtime.perform("choose", "The bird sat in the _.", model=model, options=["tree", "moon"])
        >>> answer.text, answer.confidence > 0.9
        ('tree', True)

    """
    given = pick_options(locals()) | fields
    with importing:
        from runtime.tasks import perform as tasks

    return tasks.perform(prefixes.open_model(model, prefix), task, text, given, abstain_below, prefix)


def prefix(text: str | Sequence[int], *, model: ModelOrPath = None, special_tokens: bool = False) -> Prefix:
    """What many prompts begin with, computed once: few-shot examples, a long article, the start of a conversation.

    `generate(text + question, prefix=prefix(text))` gives exactly what the call without `prefix=` gives: same prompt,
    same ids, same log-probabilities, at every precision. Only the common part is not computed again.

    The common part counts up to the last multiple of `runtime.model.prefill.PREFILL_STEP` tokens, so a shorter text
    saves nothing. Where the text and what follows it make other tokens at the seam, the common part ends before it.

    Args:
        text: the beginning, a text or token ids. A prompt that does not begin with it is refused with a ValueError;
            where one of the two is ids, ids are compared.
        model: as for `generate`.
        special_tokens: as it is given to `generate`.

    Returns:
        The prefix, for any number of calls. It takes 2 * n_layer * n_embd bytes a token with an int8 cache, which is
        18,432 for GPT-2 124M, and four times as much with an fp32 cache.

    Raises:
        ValueError: the text is empty.
        ContextLengthError: the text passes the model's n_positions.

    Example:
        >>> rules = "The old king had three sons. " * 20
        >>> known = runtime.prefix(rules, model=model)
        >>> prompt = rules + "One day"
        >>> runtime.generate(prompt, model=model, prefix=known) == runtime.generate(prompt, model=model)
        True

    """
    given = check_prompt("text", text)
    check_flag("special_tokens", special_tokens)
    opened = resolve(model)
    _check_given_ids("text", [given], opened, Options(special_tokens=special_tokens), is_one=True)
    return prefixes.make(opened, given, special_tokens)


def load_prefix(path: str | os.PathLike[str], *, model: ModelOrPath = None) -> Prefix:
    """Open what `Prefix.save` wrote, with the model it was made with.

    Args:
        path: the file.
        model: as for `generate`.

    Returns:
        The prefix.

    Raises:
        FileNotFoundError: there is no such file.
        PrefixFileError: the file was made with another model, precision or tokenizer; or with another onnxruntime or
            kind of processor, so that results would not be the same to the last bit; or it is damaged or no prefix
            at all. Make the prefix again then.

    Example:
        >>> known = runtime.prefix("The old king had three sons. " * 20, model=model)
        >>> known.save("rules.prefix")
        >>> runtime.load_prefix("rules.prefix", model=model).n_kept == known.n_kept
        True

    """
    return prefixes.load(resolve(model), Path(path))


@overload
def score(
    continuation: One,
    *,
    context: str | Sequence[int] = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> Score: ...
@overload
def score(
    continuation: Several,
    *,
    context: str | Sequence[int] = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> list[Score]: ...
def score(
    continuation: str | Sequence[int] | Sequence[str | Sequence[int]],
    *,
    context: str | Sequence[int] = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> Score | list[Score]:
    """How likely the model finds a continuation of a context.

    Several continuations share the pass over their context, with exactly the results that each has alone.

    Ids are as lm-evaluation-harness's `loglikelihood` has them: white space at the end of the context goes to the
    continuation; an empty context is bos_token_id (`<|endoftext|>`); the continuation has the ids of both together
    after as many as the context alone has, so cut the two between words. `<|endoftext|>` written in a text is text.
    What the tokenizer puts around a text (for GPT-2 nothing) is put around the context, as `generate` does with a
    prompt: the score is that of what is written after it, and equals the harness's with `add_bos_token=True` where
    that is a beginning of text.

    One pass scores many tokens. At fp32 `is_greedy` is True for what `generate` writes at temperature 0. At int8 and
    int4 log-probabilities differ by about 0.04 from those of single steps, so it may be False where two tokens are
    that close.

    Args:
        continuation: one text or several. A list of ints is one continuation of token ids, a list of such lists
            several. Ids are taken as they are, and a context or a continuation beside them is encoded on its own.
        context: the text before, or its token ids.
        model: as for `generate`.
        overflow: when context and continuation together pass n_positions + 1 tokens (the last is predicted only):
            "error", or "truncate_left", which leaves out the beginning of the context.
        prefix: what the context begins with; the scores are the same, and come sooner. See `prefix`.

    Returns:
        A Score, or a list with one for each of several continuations.

    Raises:
        TypeError: what is neither a text nor token ids.
        ValueError: an empty continuation, or none.
        ContextLengthError: a text that is too long.

    Example:
        >>> time, house = runtime.score([" a time", " a house"], context="Once upon", model=model)
        >>> time.logprob > house.logprob
        True

    """
    texts, is_one = check_prompts("continuation", continuation)
    before = check_prompt("context", context)
    opened = prefixes.open_model(model, prefix)
    check_prompt_ids("continuation", texts, opened.config.vocab_size, is_one=is_one)
    check_prompt_ids("context", [before], opened.config.vocab_size, is_one=True)
    with importing:
        from runtime.scoring import scoring

    scores = scoring.score(opened, texts, before, overflow, prefix)
    return scores[0] if is_one else scores


@overload
def score_text(text: One, *, model: ModelOrPath = None, stride: int | None = None) -> Score: ...
@overload
def score_text(text: Several, *, model: ModelOrPath = None, stride: int | None = None) -> list[Score]: ...
def score_text(
    text: str | Sequence[int] | Sequence[str | Sequence[int]],
    *,
    model: ModelOrPath = None,
    stride: int | None = None,
) -> Score | list[Score]:
    """Log-probability of every token of a text but the first, and their perplexity.

    Nothing is prepended but what the tokenizer itself puts around a text, as in transformers' recipe (for GPT-2
    nothing). Every token but the first is predicted once. Tokens of a beginning that texts share are scored, too, so
    there is no `prefix=`: score what follows the beginning with `score(rest, context=beginning, prefix=...)`.

    Args:
        text: one text or several, of any length. A list of ints is one text of token ids, a list of such lists
            several.
        model: as for `generate`.
        stride: windows of n_positions tokens begin every so many tokens. None is n_positions, the fastest; a smaller
            stride gives each token more context.

    Returns:
        A Score, or a list with one for each of several texts.

    Raises:
        TypeError: what is neither a text nor token ids.
        ValueError: a text of fewer than two tokens, or a stride outside 1 .. n_positions.

    Example:
        >>> runtime.score_text("Once upon a time there was a king.", model=model).perplexity < 20
        True

    """
    texts, is_one = check_prompts("text", text)
    opened = resolve(model)
    check_prompt_ids("text", texts, opened.config.vocab_size, is_one=is_one)
    with importing:
        from runtime.scoring import scoring

    scores = scoring.score_texts(opened, texts, stride)
    return scores[0] if is_one else scores


@overload
def surprisal(
    text: One,
    *,
    model: ModelOrPath = None,
    top: int = 0,
    bos: bool = True,
    word_correction: bool = True,
    words: Sequence[str] | None = None,
    stride: int | None = None,
) -> Surprisal: ...
@overload
def surprisal(
    text: Several,
    *,
    model: ModelOrPath = None,
    top: int = 0,
    bos: bool = True,
    word_correction: bool = True,
    words: Sequence[Sequence[str]] | None = None,
    stride: int | None = None,
) -> list[Surprisal]: ...
def surprisal(
    text: str | Sequence[int] | Sequence[str | Sequence[int]],
    *,
    model: ModelOrPath = None,
    top: int = 0,
    bos: bool = True,
    word_correction: bool = True,
    words: Sequence[str] | Sequence[Sequence[str]] | None = None,
    stride: int | None = None,
) -> Surprisal | list[Surprisal]:
    """Surprisal of every token and every word of a text, in bits.

    Short texts share passes, with exactly the results that each has alone.

    Args:
        text: one text or several, of any length. A list of ints is one text of token ids, a list of such lists
            several; `.text` is what they decode to, and where the model has no tokenizer there are no words.
        model: as for `generate`.
        top: how many alternatives to record for each token, likeliest first.
        bos: score the first token after the beginning of a text (`<|endoftext|>`). With False it is not scored, and its
            surprisal and that of its word are None.
        word_correction: count the end of a word to the word itself. GPT-2's tokens hold the space before a word, so
            the plain sum over a word's tokens counts the end of the word before instead, which confounds word
            probabilities (Oh and Schuler, 2024; Pimentel and Meister, 2024). False is the plain sum.
        words: the words of the text in their order, where white space does not separate them as wanted; a list of
            such lists for several texts.
        stride: windows of n_positions tokens begin every so many tokens. None is half of n_positions, so that a token
            of a long text has at least so much context.

    Returns:
        A Surprisal, or a list with one for each of several texts. `.tokens` holds a
        `runtime.scoring.surprisal.Token` for each token: text, span of characters, id, surprisal, rank, entropy and
        the `top` likeliest alternatives. `.words` holds a `runtime.scoring.surprisal.Word` for each word: text, span,
        surprisal summed over its tokens, and which tokens these are.

    Raises:
        TypeError: what is neither a text nor token ids.
        ValueError: a text of no tokens; a word list that does not align, naming the first word that does not; a token
            that is part of two words; bos=True with a model that has no beginning-of-text token.

    Example:
        >>> found = runtime.surprisal("The old king slept.", model=model)
        >>> [word.text for word in found.words]
        ['The', 'old', 'king', 'slept.']

    """
    with importing:
        from runtime.scoring import surprisal as measuring

    texts, is_one = check_prompts("text", text)
    settings = measuring.Settings(top=top, bos=bos, word_correction=word_correction, stride=stride)
    lists = measuring.check_words(texts, words, is_one=is_one)
    opened = resolve(model)
    check_prompt_ids("text", texts, opened.config.vocab_size, is_one=is_one)
    found = list(measuring.measure(opened, texts, settings, lists))
    return found[0] if is_one else found


def embed(
    texts: str | Sequence[int] | Sequence[str | Sequence[int]], *, model: ModelOrPath = None, pooling: Pooling = "mean"
) -> Floats:
    """Embeddings: the hidden states of the last layer (after `ln_f`), pooled over the tokens of each text.

    Equal to transformers' `last_hidden_state` pooled by its attention mask. Ids are those that its tokenizer gives:
    what it puts around a text (for GPT-2 nothing) counts, too. Short texts share passes, with exactly the results that
    each has alone.

    Args:
        texts: one text or several. A list of ints is one text of token ids, a list of such lists several.
        model: as for `generate`. A plain ONNX export puts out no hidden states.
        pooling: "mean" over all tokens, or "last", the last token alone, the only one that sees the whole text.

    Returns:
        A float32 array, [n_texts, n_embd]; [n_embd] for one text that is given by itself. They are not normalized.

    Raises:
        TypeError: what is neither a text nor token ids.
        ValueError: a text of no tokens, or another `pooling`.
        ContextLengthError: a text is longer than the model's n_positions; nothing is truncated.
        ModelFolderError: the model's graph puts out no hidden states; the message says why.

    Example:
        >>> found = runtime.embed(["The old king slept.", "A king was asleep.", "12 + 5 = 17"], model=model)
        >>> found.shape
        (3, 256)

    """
    with importing:
        from runtime.heads import embedding

    given, is_one = check_prompts("texts", texts)
    checked = embedding.check_pooling(pooling)
    found = list(embedding.embed(resolve(model), given, checked))
    return found[0] if is_one else np.stack(found)


@overload
def classify(texts: One, *, model: ModelOrPath = None) -> Classification | TokenClassification: ...
@overload
def classify(texts: Several, *, model: ModelOrPath = None) -> list[Classification] | list[TokenClassification]: ...
def classify(texts: str | Sequence[int] | Sequence[str | Sequence[int]], *, model: ModelOrPath = None) -> Any:
    """The labels that a classifier gives texts, or their tokens, with the names in the checkpoint's `id2label`.

    Equal to transformers' pipelines `text-classification` and `token-classification`. Ids are those that its tokenizer
    gives: what it puts around a text (for GPT-2 nothing) counts, too. Texts share passes, with exactly the results that
    each has alone.

    A classifier is a model folder that was built from a checkpoint of GPT2ForSequenceClassification,
    OpenAIGPTForSequenceClassification or GPT2ForTokenClassification. A text is labelled by its last token; where the
    checkpoint has a `pad_token_id`, by the last that is not that token.

    Args:
        texts: one text or several. A list of ints is one text of token ids, a list of such lists several.
        model: as for `generate`, of a classifier.

    Returns:
        For each text a `runtime.heads.classification.Classification`: `label`, `score` and `scores`, the probabilities
        by label. They sum to 1; with `problem_type` "multi_label_classification" each label has a probability of its
        own, with "regression" scores are values as they are. Of a classifier of tokens a
        `runtime.heads.classification.TokenClassification`: `tokens`, and `spans` of neighbouring tokens of one label.
        A list of these for several texts.

    Raises:
        TypeError: what is neither a text nor token ids.
        ValueError: the model is a language model; a text of no tokens.
        ContextLengthError: a text is longer than the model's n_positions; nothing is truncated.

    Example:
        >>> found = runtime.classify("What a lovely day!", model="models/mood-int8")  # doctest: +SKIP
        >>> found.label, found.scores  # doctest: +SKIP
        ('positive', {'negative': 0.0187, 'positive': 0.9813})

    """
    with importing:
        from runtime.heads import classification

    given, is_one = check_prompts("texts", texts)
    found = list(classification.classify(resolve(model), given))
    return found[0] if is_one else found


def evaluate(
    task: str,
    path: str | os.PathLike[str],
    *,
    model: ModelOrPath = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What the GPT-2 paper and lm-evaluation-harness report of a model, measured on a file.

    Args:
        task: what is measured.
            "lambada": accuracy of the last word. The file has JSON lines with `text`.
            "choose": accuracy of the likeliest option. The file has JSON lines with `context`, `options` and `answer`
            (an option, or its index); see `perform`.
            "perplexity": perplexity of a text file as it is.
            "wikitext": perplexity of one of WikiText's files, whose lines, articles and punctuation are treated as for
            the published numbers.
        path: the file.
        model: as for `generate`.
        limit: only the first so many lines of the file.
        progress: called with how much is done and how much there is.

    Returns:
        A dict fit for JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such task, or the file holds something else, with the number of the line.

    Example:
        >>> with open("words.jsonl", "w") as file:
        ...     print('{"text": "Once upon a time"}', '{"text": "The king and the queen"}', sep=chr(10), file=file)
        >>> report = runtime.evaluate("lambada", "words.jsonl", model=model)
        >>> report["task"], report["n"]
        ('lambada', 2)

    """
    with importing:
        from runtime.scoring import evaluation

    return evaluation.evaluate(resolve(model), task, path, limit, progress)
