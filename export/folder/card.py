"""The model card: `README.md` of the model folder, for readers who do not know this project."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.arguments import BuildOptions
from export.checkpoint.checkpoint import Checkpoint, model_name
from export.checkpoint.config import Config
from export.folder.layout import TRANSFORMERS_JS, graph_file
from export.verify.labels import LabelQuality
from export.verify.quality import Quality
from runtime.graph.architecture import GPT
from runtime.graph.head import SEQUENCE

# So many labels are named in the card.
_MOST_LABELS = 20
# Options whose value is a path on the machine of the build.
_PATH_OPTIONS = (
    "--output",
    "--keep-reference",
    "--eval-text",
    "--calibration-text",
    "--tokenizer",
    "--adapter",
)
_CARD = """\
---
{base_model}library_name: {library}
pipeline_tag: {task}
tags: [{model_type}, onnx, {precision}]
---
# {name}, {precision}

{family} {labels}as one fused ONNX graph for CPUs, made by gpt2-edge from {source}.

| | |
|---|---|
| layers, heads, width | {n_layer}, {n_head}, {n_embd} |
| context | {n_positions:,} tokens |
| vocabulary | {vocab_size:,} tokens |
| precision | {precision_text} |
| size | {graph_size} `{graph}`, {data_size} `{graph}_data` |

## Quality

{quality}

{upgraded}{use}## How it was built

```
{command}
```
"""

_USE = """\
## Use

In a clone of gpt2-edge `pip install .` installs the runtime; a wheel that `pip wheel --no-deps .` makes there carries
it to other machines.

```python
import runtime

model = runtime.load("{folder}")
print({call})
```

`{shell}` does the same in a shell, and
`gpt2-edge check {folder}` tells whether a device runs the model as it should: it verifies the checksums and scores
`golden.json`, recorded outputs of this very model. `sha256sum -c SHA256SUMS` checks the files alone.

Other runtimes open the folder too: {others}. Give them one prompt
at a time, or pad on the right: a mask that begins with 0 (padding on the left) makes the graph fail, since its
attention operator would read the wrong positions.

"""

_USE_TRANSFORMERS_JS = """\
## Use

The names of the files are those that transformers.js expects, so `from_pretrained` needs no options:

```js
import {{ pipeline }} from "@huggingface/transformers";

const model = await pipeline("{task}", "{folder}");
console.log(await model({in_javascript}));
```

For a folder on disk set `env.localModelPath` to the folder above it, and `env.allowRemoteModels = false`.
`sha256sum -c SHA256SUMS` checks the files. gpt2-edge's own runtime opens the layout that its builds have without
`--layout`.

Pad prompts on the right: a mask that begins with 0 (padding on the left) makes the graph fail, since its attention
operator would read the wrong positions.

"""

_MEASURED = """\
Perplexity {perplexity:.3f}, where {reference} has {reference_perplexity:.3f}: a loss of {loss_percent:.3f} %. The
likeliest token is the same at {top1:.2f} % of positions; the KL divergence is {mean_kl:.5f} in the mean, and under
{p99_kl:.4f} at 99 of 100. Measured over
{n_tokens:,} tokens of `{text}` ({protocol})."""


_MEASURED_LABELS = """\
{agreement}The KL divergence of the scores from those of {reference} is {mean_kl:.5f} in
the mean, and under {p99_kl:.4f} at 99 of 100; no score differs by more than {largest:.4f}. Measured over
{n:,} {what} of `{text}` ({protocol})."""


_UPGRADED = """\
These products lose too much with the usual kernel and have a more exact one. Errors are mean squares relative to the
variance of the output, over the calibration text:

| product | kernel | error with the usual kernel | error |
|---|---|---|---|
{rows}

"""


def write_card(
    folder: Path,
    checkpoint: Checkpoint,
    options: BuildOptions,
    quality: Quality | LabelQuality | None,
    upgraded: Sequence[Mapping[str, Any]] = (),
    *,
    weights: str | None = None,
) -> None:
    """Write `README.md`.

    quality: None for a model that was not verified. upgraded: the products with a more exact kernel than usual, as in
    `quality.json`. weights: a description of published weights that were recognized.
    """
    config = checkpoint.config
    graph = graph_file(options.layout, options.precision)
    use = _USE_TRANSFORMERS_JS if options.layout == TRANSFORMERS_JS else _USE
    kind = _use(config, options.output.name)
    card = _CARD.format(
        **kind,
        name=checkpoint.name,
        family="GPT" if config.model_type == GPT else "GPT-2",
        model_type=config.model_type,
        library="transformers.js" if options.layout == TRANSFORMERS_JS else "onnxruntime",
        use=use.format(folder=options.output.name, **kind),
        source=_source(checkpoint) + (f": {weights}" if weights else ""),
        # Only for a hub id: other tools cannot resolve a local path.
        base_model=f"base_model: {json.dumps(checkpoint.source)}\n" if checkpoint.commit else "",
        precision=options.precision,
        precision_text=options.precision_text,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_positions=config.n_positions,
        vocab_size=config.vocab_size,
        graph=graph,
        graph_size=_size(folder / graph),
        data_size=_size(folder / f"{graph}_data"),
        quality=quality_text(checkpoint, quality),
        upgraded=_upgraded_text(upgraded),
        command=_shorten_paths(options.command, checkpoint),
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def _use(config: Config, folder: str) -> dict[str, str]:
    """The parts of the card that differ between a language model and a classifier."""
    if config.head is None:
        options = "model=model, temperature=0.8, top_p=0.9"
        return {
            "task": "text-generation",
            "labels": "",
            "call": f'runtime.generate("Once upon a time", {options})',
            "shell": f'gpt2-edge generate "Once upon a time" --model {folder} --temperature 0.8 --top-p 0.9',
            "others": "optimum, transformers.js and onnxruntime-genai among them",
            "in_javascript": '"Once upon a time", { max_new_tokens: 40, do_sample: true, temperature: 0.8 }',
        }
    is_sequence = config.head.kind == SEQUENCE
    labels = ", ".join(f"`{label}`" for label in config.head.labels[:_MOST_LABELS])
    more = len(config.head.labels) - _MOST_LABELS
    return {
        "task": "text-classification" if is_sequence else "token-classification",
        "labels": f"as a classifier of {'texts' if is_sequence else 'tokens'} ({labels}"
        f"{f' and {more} more' if more > 0 else ''}), ",
        "call": 'runtime.classify("A text to label.", model=model)',
        "shell": f'gpt2-edge classify "A text to label." --model {folder}',
        "others": f"optimum's ORTModelFor{'Sequence' if is_sequence else 'Token'}Classification among them",
        "in_javascript": '"A text to label."',
    }


def _label_text(quality: LabelQuality) -> str:
    agreement = ""
    if quality.label_agreement is not None:
        agreement = f"The labels are those of {quality.reference} in {100 * quality.label_agreement:.2f} % of cases. "
    return _MEASURED_LABELS.format(
        agreement=agreement,
        reference=quality.reference,
        mean_kl=quality.mean_kl,
        p99_kl=quality.p99_kl,
        largest=quality.largest_difference,
        n=quality.n_labelled,
        what=quality.labelled,
        text=quality.text,
        protocol=quality.protocol,
    )


def _upgraded_text(upgraded: Sequence[Mapping[str, Any]]) -> str:
    """A table of the products with a more exact kernel; "" if there are none."""
    if not upgraded:
        return ""
    rows = [
        f"| `{one['product']}` | {one['kernel']} | {one.get('usual_error', math.nan):.1e} | "
        f"{one.get('error', math.nan):.1e} |"
        for one in upgraded
    ]
    return _UPGRADED.format(rows="\n".join(rows))


def _source(checkpoint: Checkpoint) -> str:
    """What the model was made from, in words."""
    if checkpoint.is_random:
        return f"`{checkpoint.source}`: seeded noise of that size, which writes no sense"
    source = f"a {checkpoint.kind} on disk, `{checkpoint.name}`"
    if checkpoint.commit:
        source = f"`{checkpoint.source}` on the Hugging Face hub, commit {checkpoint.commit}"
    if checkpoint.adapters:
        names = ", ".join(f"`{name}`" for name in checkpoint.adapters)
        source += f", with the LoRA adapter{'s' if len(checkpoint.adapters) > 1 else ''} {names} merged into it"
    return source


def _shorten_paths(command: str, checkpoint: Checkpoint) -> str:
    """The command with only the last part of every path: the folders before it are private, and differ elsewhere."""
    is_local = not (checkpoint.commit or checkpoint.is_random)
    return shlex.join(_shorten_words(shlex.split(command), checkpoint.source if is_local else None))


def _shorten_words(words: list[str], source: str | None) -> Iterator[str]:
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        if before in _PATH_OPTIONS or word == source:
            yield _last_part(word)
        elif equals and option in _PATH_OPTIONS:
            yield f"{option}={_last_part(value)}"
        else:
            yield word
        before = word


def _last_part(path: str) -> str:
    return Path(path).name if Path(path).is_file() else model_name(path)


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.2f} MB"


def quality_text(checkpoint: Checkpoint, quality: Quality | LabelQuality | None) -> str:
    """The measured figures in words."""
    if quality is None:
        return "Not verified: this model was built with `--verify none`."
    if isinstance(quality, LabelQuality):
        return _label_text(quality)
    measured = _MEASURED.format(
        perplexity=quality.perplexity,
        reference=quality.reference,
        reference_perplexity=quality.reference_perplexity,
        loss_percent=quality.loss_percent,
        top1=100 * quality.top1_agreement,
        mean_kl=quality.mean_kl,
        p99_kl=quality.p99_kl,
        n_tokens=quality.n_tokens,
        text=quality.text,
        protocol=quality.protocol,
    )
    return f"The weights are random, so these figures mean nothing. {measured}" if checkpoint.is_random else measured
