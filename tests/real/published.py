"""What others have published of OpenAI's models, with where it stands.

Perplexities of WikiText-2 differ by protocol, so each figure says under which column of the report it belongs:
`strided full` and `strided half` are perplexities a token by the recipe of transformers' documentation, the stride
being the context or half of it; `rolling` is lm-evaluation-harness's perplexity a word. LAMBADA: `word` is its
`lambada_openai`, where every token of the last word must be the likeliest; `stop words` is the accuracy with the
stop-word filter of the GPT-2 paper; `last token` counts the last token alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from export.checkpoint.random_weights import SIZES


@dataclass(frozen=True)
class Source:
    """Figures from one place, by the column they belong to; accuracies are shares of one."""

    title: str
    url: str
    figures: dict[str, float]


# Radford et al. 2019; its texts went through de-tokenizers that are not published
PAPER = "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf"
HARNESS = "https://github.com/EleutherAI/lm-evaluation-harness/issues"
TRANSFORMERS = "https://github.com/huggingface/transformers/issues/13761"
DOCUMENTATION = "https://huggingface.co/docs/transformers/perplexity"


def _paper(wikitext: float, perplexity: float, accuracy: float) -> Source:
    figures = {
        "strided full": wikitext,
        "lambada perplexity": perplexity,
        "lambada stop words": round(accuracy / 100, 4),
    }
    return Source("GPT-2 paper, Table 3", PAPER, figures)


PUBLISHED: dict[str, tuple[Source, ...]] = {
    "gpt2": (
        _paper(29.41, 35.13, 45.99),
        # a user's figures by transformers' recipe, by the harness, and of the last token
        Source(
            "transformers, issue 13761",
            TRANSFORMERS,
            {"strided full": 29.94, "rolling": 37.37, "lambada last token": 0.4667},
        ),
        Source(
            "lm-evaluation-harness, issue 2159",
            f"{HARNESS}/2159",
            {"lambada word": 0.3256, "lambada perplexity": 40.0554},
        ),
    ),
    "gpt2-medium": (_paper(22.76, 15.60, 55.48),),
    "gpt2-large": (
        _paper(19.93, 10.87, 60.12),
        Source("transformers' documentation", DOCUMENTATION, {"strided full": 19.44, "strided half": 16.44}),
    ),
    "gpt2-xl": (
        _paper(18.34, 8.63, 63.24),
        Source("lm-evaluation-harness, issue 911", f"{HARNESS}/911", {"lambada perplexity": 10.63}),
        # all evaluations of that table are by the harness
        Source(
            "GPT-Neo's README, by the harness",
            "https://github.com/EleutherAI/gpt-neo/blob/00d8d70c1bff046a36c6945b8b4c49a605babda8/README.md",
            {"lambada word": 0.5121, "lambada perplexity": 10.634},
        ),
    ),
}


class Shape(Protocol):
    """A config: the runtime's, or the build's."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int


def size_of(config: Shape) -> str | None:
    """OpenAI's name for a model of this shape and vocabulary, fine-tuned or not; None for any other."""
    keys = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return next(
        (name for name, size in SIZES.items() if all(getattr(size, k) == getattr(config, k) for k in keys)), None
    )
