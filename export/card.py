"""The model card: `README.md` of the model folder, for whoever finds it without this project."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import Checkpoint
from export.quality import Quality

_CARD = """\
---
base_model: {source}
library_name: onnxruntime
pipeline_tag: text-generation
tags: [gpt2, onnx, {precision}]
---
# {name}, {precision}

GPT-2 as one fused ONNX graph for CPUs, made by gpt2-edge from `{source}`.

| | |
|---|---|
| layers, heads, width | {n_layer}, {n_head}, {n_embd} |
| context | {n_positions:,} tokens |
| vocabulary | {vocab_size:,} tokens |
| precision | {precision_text} |
| size | {size:.1f} MB: `model.onnx` and `model.onnx_data` |

## Quality

{quality}

## Use

```python
import runtime  # pip install gpt2-edge

model = runtime.load("{name_in_code}")
print(runtime.generate("Once upon a time", model=model))
```

`sha256sum -c SHA256SUMS` checks the files.

Other runtimes open the folder too: optimum's `ORTModelForCausalLM.from_pretrained` among them. Give them one prompt
at a time, or pad on the right: a mask that begins with 0 (padding on the left) makes the graph fail, since its
attention operator would read the wrong positions.

## How it was built

```
{command}
```
"""

_MEASURED = """\
Perplexity {perplexity:.3f}, where {reference} has {reference_perplexity:.3f}: a loss of {loss_percent:.3f} %. The
likeliest token is the same at {top1:.2f} % of positions; the mean KL divergence is {mean_kl:.5f}. Measured over
{n_tokens:,} tokens of `{text}` ({protocol})."""


def write_card(
    folder: Path, checkpoint: Checkpoint, precision: str, block_size: int | None, quality: Quality | None, command: str
) -> None:
    """Write `README.md`; `quality` None says that nothing was verified."""
    config = checkpoint.config
    weights = sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))
    card = _CARD.format(
        name=checkpoint.name,
        name_in_code=f"{checkpoint.name}-{precision}",
        source=checkpoint.source,
        precision=precision,
        precision_text=precision if block_size is None else f"{precision}, blocks of {block_size}, one scale each",
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_positions=config.n_positions,
        vocab_size=config.vocab_size,
        size=weights / 1e6,
        quality=quality_text(checkpoint, quality),
        command=command,
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def quality_text(checkpoint: Checkpoint, quality: Quality | None) -> str:
    """The measured figures in words."""
    if quality is None:
        return "Not verified: this model was built with `--verify none`."
    measured = _MEASURED.format(
        perplexity=quality.perplexity,
        reference=quality.reference,
        reference_perplexity=quality.reference_perplexity,
        loss_percent=quality.loss_percent,
        top1=100 * quality.top1_agreement,
        mean_kl=quality.mean_kl,
        n_tokens=quality.n_tokens,
        text=quality.text,
        protocol=quality.protocol,
    )
    return f"The weights are random, so these figures mean nothing. {measured}" if checkpoint.is_random else measured
