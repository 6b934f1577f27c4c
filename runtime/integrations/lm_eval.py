"""lm-evaluation-harness on a model folder.

`python -m runtime.integrations.lm_eval --model gpt2-edge ...`, and otherwise as `lm_eval`.

lm_eval knows a model of other people's only once its module is imported: this one is also a command for that reason.
From Python, import it and call `lm_eval.simple_evaluate(model="gpt2-edge", ...)`.
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

from runtime import complete, load, score
from runtime._checks import check_count
from runtime.diagnostics.info import describe
from runtime.generation.loop import BATCH_SIZE
from runtime.options import MAX_SEED
from runtime.scoring.perplexity import measure_rolling

LogLikelihood = tuple[float, bool]  # of the whole continuation, and whether greedy decoding would write it


@register_model("gpt2-edge")
class GPT2Edge(LM):  # type: ignore[misc]  # lm_eval is not typed
    """A model folder, for lm_eval's tasks.

    Context and continuation are cut into ids as lm_eval's `hf` model does, but for `<|endoftext|>` written in a
    text, which is text here, and for what a tokenizer puts around a text (for GPT-2 nothing), which is there as with
    `add_bos_token=True`. What is too long loses its beginning, as there.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        threads: int | None = None,
        batch_size: int | str = BATCH_SIZE,
        device: str = "cpu",  # noqa: ARG002  # lm_eval always names one
    ) -> None:
        """What `--model_args` holds; `--batch_size` arrives here too.

        pretrained, threads: as `runtime.load` takes them.
        batch_size: rows that generate together; "auto" is 16. Scoring takes no notice: a document's options share
            the pass over their context instead.
        device: whatever lm_eval says (cuda:0, unless told otherwise), the model runs on the CPU.
        Raises what `runtime.load` raises.
        """
        super().__init__()
        self.batch_size = _read_batch_size(batch_size)
        self._model = load(pretrained, threads=threads)

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval calls its caches of requests by."""
        return str(self._model.folder.resolve()).replace(os.sep, "__")

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval records beside the results: see `gpt2-edge info`."""
        return {"model_folder": describe(self._model.folder)}

    def chat_template(self, chat_template: bool | str = False) -> str:  # noqa: ARG002
        """Raises ValueError: there is none."""
        raise ValueError(
            "GPT-2 was not trained to chat and this model has no chat template; leave --apply_chat_template out"
        )

    def loglikelihood(self, requests: list[Instance]) -> list[LogLikelihood]:
        """Of each continuation, given its context; requests with the same context share the pass over it."""
        by_context: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_context.setdefault(request.args[0], []).append(index)
        found: dict[int, LogLikelihood] = {}
        n_truncated = 0
        with _progress("loglikelihood", len(requests)) as bar:
            for context, group in by_context.items():
                texts = [requests[index].args[1] for index in group]
                scores = score(texts, context=context, model=self._model, overflow="truncate_left")
                for index, one in zip(group, scores, strict=True):
                    found[index] = one.logprob, one.is_greedy
                    n_truncated += one.n_truncated > 0
                    self.cache_hook.add_partial("loglikelihood", requests[index].args, found[index])
                bar.update(len(group))
        self._tell_truncated(n_truncated, len(requests))
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of each text as a whole, in windows of n_positions tokens; an empty one has 0."""
        found = []
        for request in _progress("loglikelihood_rolling", len(requests), requests):
            (text,) = request.args
            found.append(measure_rolling(self._model, [text]).logprob if text else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The continuation of each context, up to the first of its stop strings.

        Generation arguments are lm_eval's, and any option of `runtime.complete`. Seeds of samples are drawn from
        numpy's global generator, which lm_eval seeds.
        """
        found: dict[int, str] = {}
        n_truncated = 0
        with _progress("generate_until", len(requests)) as bar:
            for group, arguments in _alike(requests, 4 * self.batch_size):  # rows that end make room for the next
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
    """Raises ValueError or TypeError for what is neither "auto" nor a number above 0."""
    if given == "auto":
        return BATCH_SIZE
    if isinstance(given, str) and not given.isdecimal():
        raise ValueError(f"batch_size is {given!r}; a whole number or auto is expected")
    return check_count("batch_size", int(given) if isinstance(given, str) else given)


def _progress(what: str, total: int, over: Iterable[Instance] | None = None) -> Any:
    return tqdm(over, total=total, desc=f"gpt2-edge {what}")


def _alike(requests: Sequence[Instance], size: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Indices of requests with the same generation arguments, up to `size` at a time, and those."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(index)
    for group in groups.values():
        for begin in range(0, len(group), size):
            yield group[begin : begin + size], requests[group[0]].args[1]


def _read_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """lm_eval's generation arguments as options of `runtime.complete`, which refuses those it does not know."""
    options: dict[str, Any] = {**normalize_gen_kwargs(arguments)}
    temperature = options.pop("temperature", 1.0)
    options["temperature"] = temperature if options.pop("do_sample") else 0.0
    return options | {"stop": options.pop("until"), "max_new_tokens": options.pop("max_gen_toks")}


def _draw_seed() -> int:
    return int(np.random.randint(MAX_SEED, dtype=np.uint64))


def main() -> None:
    """lm_eval's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
