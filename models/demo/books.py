"""What train.py reads and measures: the corpus, its tokens, checkpoint folders, and held-out perplexity."""

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"

hf: Any = transformers  # few of its calls are typed
Texts = dict[str, str]
Tokens = npt.NDArray[np.uint16]


class UserError(Exception):
    """Something the user can put right; printed without a traceback."""


def read_corpus(folders: list[Path], held_out: list[str], repeats: dict[str, int]) -> tuple[list[str], Texts]:
    """Texts to train on, a repeated one several times, and the held-out books by name."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no corpus folder {folder}")
    paths = sorted((path for folder in folders for path in folder.glob("*.txt")), key=lambda path: path.name)
    texts = {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths}
    if len(texts) < len(paths):
        raise UserError("two books of the corpus folders have the same file name")
    for name in [*held_out, *repeats]:
        if name not in texts:
            raise UserError(f"no book {name} in the corpus folders")
    names = [name for name in texts if name not in held_out]
    train = [texts[name] for name in names for _ in range(repeats.get(name, 1))]
    return train, {name: texts[name] for name in held_out}


def new_tokenizer(texts: list[str], vocab: int, context: int) -> Any:
    """A byte-level BPE tokenizer learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END], show_progress=False, initial_alphabet=alphabet),
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=context,
        model_input_names=["input_ids", "attention_mask"],  # no token_type_ids: GPT-2 would add their embeddings
    )


def load_checkpoint(folder: Path) -> tuple[Any, Any]:
    """Model, in float32, and tokenizer of a checkpoint folder."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"no checkpoint in {folder}: it has no {name}")
    model = hf.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, hf.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def save(out: Path, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    """Write the checkpoint beside OUT's files and rename them, so that none is ever half written."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as folder:
        copy.deepcopy(model).to("cpu", torch.float16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (Path(folder) / "train.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)
    print(f"saved {out} at step {record['steps']:,}", flush=True)


def encode(tokenizer: Any, texts: list[str]) -> Tokens:
    """All texts as one row of tokens, END after each piece."""
    pieces = [piece.strip() for text in texts for piece in text.split(END)]
    end = tokenizer.eos_token_id
    ids = [i for piece in pieces for i in [*tokenizer.backend_tokenizer.encode(piece).ids, end]]
    return np.array(ids, dtype=np.uint16)


def batches(data: Tokens, size: int, context: int, seed: int) -> Iterator[torch.Tensor]:
    """Windows of the data without end: each epoch cuts at a new offset and shuffles."""
    if len(data) < (size + 1) * context:
        raise UserError(f"{len(data):,} tokens of corpus are too few for batches of {size} x {context}")
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.permutation(np.arange(rng.integers(context), len(data) - context + 1, context))
        for at in range(0, len(starts) - size + 1, size):
            rows = [data[start : start + context] for start in starts[at : at + size]]
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


def held_out_windows(tokenizer: Any, text: str, context: int) -> list[torch.Tensor]:
    """A book cut into windows that overlap by one token: every token but the first is predicted once."""
    ids = torch.tensor(tokenizer.backend_tokenizer.encode(text.strip()).ids)
    if len(ids) < 2:
        raise UserError("a held-out book is empty")
    return [ids[at : at + context] for at in range(0, len(ids) - 1, context - 1)]


@torch.no_grad()
def window_losses(model: Any, windows: list[torch.Tensor]) -> tuple[float, int]:
    """Summed negative log-likelihood, in nats, of tokens 2..n of each window, and how many they are."""
    total, count = 0.0, 0
    for ids in (window.to(model.device) for window in windows):
        logits = model(input_ids=ids[None, :-1]).logits[0].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return total, count


def measure(folder: Path, books: Texts, device: str = "cpu") -> dict[str, Any]:
    """Perplexity and bits per byte of whole books under the checkpoint saved in a folder, in float32."""
    model, tokenizer = load_checkpoint(folder)
    model.to(device).eval()
    parts = {}
    for name, text in books.items():
        nats, tokens = window_losses(model, held_out_windows(tokenizer, text, model.config.n_positions))
        parts[name] = (nats, tokens, len(text.strip().encode()))
        print(name, figures(*parts[name]), flush=True)
    totals = [sum(column) for column in zip(*parts.values(), strict=True)]
    return {**figures(*totals), "books": {name: figures(*part) for name, part in parts.items()}}


def figures(nats: float, tokens: float, size: float) -> dict[str, float]:
    """What a summed negative log-likelihood over tokens that came of size bytes amounts to."""
    return {
        "tokens": tokens,
        "bytes": size,
        "nll": round(nats / tokens, 4),
        "perplexity": round(math.exp(nats / tokens), 2),
        "bits_per_byte": round(nats / size / math.log(2), 4),
    }
