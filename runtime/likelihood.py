"""The public functions about text that is given: how likely a model finds it, and what that makes of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from runtime._lock import importing
from runtime.model.resolve import ModelOrPath, resolve
from runtime.prefixes import prefix as shared_prefix
from runtime.prefixes.prefix import Prefix
from runtime.scoring import scoring
from runtime.scoring.scoring import Score, ScoreOverflow

if TYPE_CHECKING:  # loaded where it is used: importing the package stays quick
    from runtime.scoring.perplexity import Progress
    from runtime.scoring.surprisal import Surprisal

Several = list[str] | tuple[str, ...]


@overload
def score(
    continuation: str,
    *,
    context: str = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> Score: ...
@overload
def score(
    continuation: Several,
    *,
    context: str = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> list[Score]: ...
def score(
    continuation: str | Sequence[str],
    *,
    context: str = "",
    model: ModelOrPath = None,
    overflow: ScoreOverflow = "error",
    prefix: Prefix | None = None,
) -> Score | list[Score]:
    """How likely the model finds a continuation of a context: a Score, or one for each of several continuations.

    Several share the pass over their context, with the very results each has alone. Ids are as
    lm-evaluation-harness's `loglikelihood` has them: white space at the end of the context goes to the continuation;
    an empty context is bos_token_id (`<|endoftext|>`); the continuation has the ids of both together after as many
    as the context alone has, so cut the two between words. `<|endoftext|>` written in a text is text. What the
    tokenizer puts around a text (for GPT-2 nothing) is put around the context, as `generate` does with a prompt:
    the score is that of what is written after it, and equals the harness's with `add_bos_token=True` where that is
    a beginning of text.
    overflow: where context and continuation together pass n_positions + 1 tokens (the last is predicted only):
        "error", or "truncate_left", which leaves out the beginning of the context.
    prefix: of a context that begins with its text; the scores are the same, and come sooner. See `runtime.prefix`.
    One pass scores many tokens. At fp32 `is_greedy` is True for what `generate` writes at temperature 0; at int8 and
    int4 log-probabilities differ by about 0.04 from those of single steps, and it may be False where two tokens are
    that close.
    Raises TypeError for what is no text; ValueError for an empty continuation, and for one too long.
    """
    opened = shared_prefix.open_model(model, prefix)
    scores = scoring.score(opened, scoring.as_texts(continuation), context, overflow, prefix)
    return scores[0] if isinstance(continuation, str) else scores


@overload
def score_text(text: str, *, model: ModelOrPath = None, stride: int | None = None) -> Score: ...
@overload
def score_text(text: Several, *, model: ModelOrPath = None, stride: int | None = None) -> list[Score]: ...
def score_text(
    text: str | Sequence[str], *, model: ModelOrPath = None, stride: int | None = None
) -> Score | list[Score]:
    """Log-probability of every token of a text but the first, and their perplexity; one Score for each of several.

    Windows of n_positions tokens begin every `stride` tokens (default n_positions: fastest; smaller gives each
    token more context). Nothing is prepended but what the tokenizer itself puts around a text, as in transformers'
    recipe (for GPT-2 nothing); every token but the first is predicted once.
    Every token is scored, those of a beginning that texts share too, so there is no `prefix=`: score what follows it
    with `score(rest, context=beginning, prefix=...)`.
    Raises ValueError for a text of fewer than two tokens or a stride outside 1 .. n_positions.
    """
    opened = resolve(model)
    scores = scoring.score_texts(opened, scoring.as_texts(text), stride)
    return scores[0] if isinstance(text, str) else scores


@overload
def surprisal(
    text: str,
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
    text: str | Sequence[str],
    *,
    model: ModelOrPath = None,
    top: int = 0,
    bos: bool = True,
    word_correction: bool = True,
    words: Sequence[str] | Sequence[Sequence[str]] | None = None,
    stride: int | None = None,
) -> Surprisal | list[Surprisal]:
    """Surprisal of every token and every word of a text, in bits: a Surprisal, or one for each of several texts.

    `.tokens` holds a `runtime.scoring.surprisal.Token` for each token: text, span of characters, id, surprisal, rank,
    entropy and the `top` likeliest alternatives. `.words` holds a `runtime.scoring.surprisal.Word` for each word: text,
    span, surprisal summed over its tokens, and which tokens these are. Short texts share passes, with the very results
    that each has alone; a text may be of any length.

    top: how many alternatives to record for each token, likeliest first.
    bos: score the first token after the beginning of a text (`<|endoftext|>`). With False it is not scored, and its
        surprisal and that of its word are None.
    word_correction: count the end of a word to the word itself. GPT-2's tokens hold the space before a word, so the
        plain sum over a word's tokens counts the end of the word before instead, which confounds word probabilities
        (Oh and Schuler, 2024; Pimentel and Meister, 2024). False is the plain sum.
    words: the words of the text in their order, where white space does not separate them as wanted; a list of such
        lists for several texts.
    stride: windows of n_positions tokens begin every so many tokens; None is half of n_positions, so that a token of
        a long text has at least so much context.
    Raises TypeError for what is no text; ValueError for a text of no tokens, for a word list that does not align,
    naming the first word that does not, for a token that is part of two words, and for bos=True with a model that has
    no beginning-of-text token.

    >>> found = runtime.surprisal("The old king slept.", model="models/demo-int8")
    >>> [word.text for word in found.words]
    ['The', 'old', 'king', 'slept.']
    """
    with importing:
        from runtime.scoring import surprisal as measuring

    texts = scoring.as_texts(text)
    settings = measuring.Settings(top=top, bos=bos, word_correction=word_correction, stride=stride)
    lists = measuring.check_words(texts, words, is_one=isinstance(text, str))
    found = list(measuring.measure(resolve(model), texts, settings, lists))
    return found[0] if isinstance(text, str) else found


def evaluate(
    task: str,
    path: str | os.PathLike[str],
    *,
    model: ModelOrPath = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What the GPT-2 paper and lm-evaluation-harness report of a model, measured on a file: a dict fit for JSON.

    task and path:
        "lambada": JSON lines with `text`; the last word is predicted.
        "choose": JSON lines with `context`, `options` and `answer` (an option, or its index); see `perform`.
        "perplexity": a text file as it is. "wikitext": one of WikiText's files, whose lines, articles and
        punctuation are treated as for the published numbers.
    limit: only the first so many lines of the file.
    progress: called with how much is done and how much there is.
    Raises FileNotFoundError; ValueError for an unknown task and for a file that holds something else, naming the line.
    """
    with importing:
        from runtime.scoring import evaluation

    return evaluation.evaluate(resolve(model), task, path, limit, progress)
