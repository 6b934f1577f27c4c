"""Evaluate a model folder with lm-evaluation-harness, as the model `gpt2-edge`.

`python -m runtime.integrations.lm_eval --model gpt2-edge ...` takes the arguments of the command `lm_eval`, which does
not know a model of another package until its module is imported. From Python, import this module and call
`lm_eval.simple_evaluate(model="gpt2-edge", ...)`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

try:
    import numpy as np
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ImportError(f"{error.name} is not installed; pip install 'gpt2-edge[eval]' brings it") from None

from runtime import complete, load
from runtime._checks import check_count
from runtime.diagnostics.info import describe
from runtime.generation.loop import BATCH_SIZE
from runtime.options import MAX_SEED
from runtime.scoring.perplexity import measure_rolling
from runtime.scoring.scoring import encode_pair, fit_pair, score_pairs

# The log-probability of a continuation, and whether greedy decoding would generate it.
LogLikelihood = tuple[float, bool]
# How many requests are scored together; a few more if they share a context.
REQUESTS_TOGETHER = 128


@register_model("gpt2-edge")
class GPT2Edge(LM):  # type: ignore[misc]  # lm_eval is not typed
    """A model folder as a model of lm_eval.

    Context and continuation are tokenized as in lm_eval's `hf` model, with two exceptions: `<|endoftext|>` in a text is
    plain text here, and special tokens that a tokenizer adds to a text (GPT-2's adds none) are added as with
    `add_bos_token=True`. As in `hf`, a request that is too long loses its beginning.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        batch_size: int | str = BATCH_SIZE,
        device: str = "cpu",  # noqa: ARG002  # lm_eval always names one
    ) -> None:
        """Load the model; the arguments are those of `--model_args`, and `--batch_size`.

        pretrained, threads: see `runtime.load`.
        batch_size: how many rows generate together; "auto" is 16. Scoring chooses its own batches.
        device: ignored, since the model runs on the CPU; lm_eval always passes one (cuda:0 by default).
        Raises the errors of `runtime.load`.
        """
        super().__init__()
        self.batch_size = _read_batch_size(batch_size)
        self._model = load(pretrained, threads=threads)

    @property
    def tokenizer_name(self) -> str:
        """The name of this model in lm_eval's caches of requests."""
        return str(self._model.folder.resolve()).replace(os.sep, "__")

    def get_model_info(self) -> dict[str, Any]:
        """The facts that lm_eval records with the results, see `gpt2-edge info`."""
        return {"model_folder": describe(self._model.folder)}

    def chat_template(self, chat_template: bool | str = False) -> str:  # noqa: ARG002
        """Raises ValueError, since the model has no chat template."""
        raise ValueError(
            "GPT-2 was not trained to chat and this model has no chat template; leave --apply_chat_template out"
        )

    def loglikelihood(self, requests: list[Instance]) -> list[LogLikelihood]:
        """The log-likelihood of each continuation, given its context.

        Short requests share passes, and long ones with the same context share the pass over it.
        """
        found: dict[int, LogLikelihood] = {}
        n_truncated = 0
        size = self._model.config.n_positions
        with _progress("loglikelihood", len(requests)) as bar:
            for group in _by_context(requests, REQUESTS_TOGETHER):
                pairs = [encode_pair(self._model, *requests[index].args) for index in group]
                scores = score_pairs(self._model, [fit_pair(pair, size, "truncate_left") for pair in pairs])
                for index, one in zip(group, scores, strict=True):
                    found[index] = one.logprob, one.is_greedy
                    n_truncated += one.n_truncated > 0
                    self.cache_hook.add_partial("loglikelihood", requests[index].args, found[index])
                bar.update(len(group))
        self._tell_truncated(n_truncated, len(requests))
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each whole text, in windows of n_positions tokens; 0 for an empty text."""
        found = []
        for request in _progress("loglikelihood_rolling", len(requests), requests):
            (text,) = request.args
            found.append(measure_rolling(self._model, [text]).logprob if text else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The continuation of each context, up to its first stop string.

        Generation arguments are those of lm_eval, and all options of `runtime.complete`. Seeds for sampling are drawn
        from numpy's global generator, which lm_eval seeds.
        """
        found: dict[int, str] = {}
        n_truncated = 0
        with _progress("generate_until", len(requests)) as bar:
            # More requests than rows, since rows that end make room for others.
            for group, arguments in _alike(requests, 4 * self.batch_size):
                contexts = [requests[index].args[0] for index in group]
                options = {"overflow": "truncate_left", "batch_size": self.batch_size, **_read_options(arguments)}
                if options["temperature"]:
                    options.setdefault("seed", [_draw_seed() for _ in group])
                for index, completion in zip(group, complete(contexts, model=self._model, **options), strict=True):
                    found[index] = completion.text
                    n_truncated += completion.n_truncated > 0
                    self.cache_hook.add_partial("generate_until", requests[index].args, completion.text)
                bar.update(len(group))
        self._tell_truncated(n_truncated, len(requests))
        return [found[index] for index in range(len(requests))]

    def _tell_truncated(self, n: int, n_all: int) -> None:
        if n:
            size = self._model.config.n_positions
            tqdm.write(f"gpt2-edge: {n} of {n_all} contexts lost their beginning, to fit {size} positions")


def _read_batch_size(given: int | str) -> int:
    """The batch size as a number. Raises ValueError or TypeError unless it is "auto" or a whole number above 0."""
    if given == "auto":
        return BATCH_SIZE
    if isinstance(given, str) and not given.isdecimal():
        raise ValueError(f"batch_size is {given!r}; a whole number or auto is expected")
    return check_count("batch_size", int(given) if isinstance(given, str) else given)


def _progress(what: str, total: int, over: Iterable[Instance] | None = None) -> Any:
    return tqdm(over, total=total, desc=f"gpt2-edge {what}")


def _by_context(requests: Sequence[Instance], size: int) -> Iterator[list[int]]:
    """Indices of requests in groups of `size` or a few more; requests with the same context are in one group."""
    contexts: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        contexts.setdefault(request.args[0], []).append(index)
    group: list[int] = []
    for indices in contexts.values():
        group += indices
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def _alike(requests: Sequence[Instance], size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Indices of up to `size` requests with the same generation arguments, and these arguments."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(index)
    for group in groups.values():
        for begin in range(0, len(group), size):
            yield group[begin : begin + size], requests[group[0]].args[1]


def _read_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Convert lm_eval's generation arguments to options of `runtime.complete`, which raises errors for unknown ones."""
    options: dict[str, Any] = {**normalize_gen_kwargs(arguments)}
    temperature = options.pop("temperature", 1.0)
    options["temperature"] = temperature if options.pop("do_sample") else 0.0
    return options | {"stop": options.pop("until"), "max_new_tokens": options.pop("max_gen_toks")}


def _draw_seed() -> int:
    return int(np.random.randint(MAX_SEED, dtype=np.uint64))


def main() -> None:
    """Run lm_eval's command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
