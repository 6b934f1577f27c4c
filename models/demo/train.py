"""Make the demo checkpoint: train a small GPT-2 on folders of plain texts, on a CPU or a GPU.

    python train.py --corpus DIR [DIR ...] --held-out FILE [FILE ...] --out OUT --minutes 85
    python train.py --corpus DIR [DIR ...] --held-out FILE [FILE ...] --out OUT --minutes 85 --resume OLD

Every file of the corpus folders that ends in .txt is one book; the books named by --held-out are never
trained on. OUT becomes a Hugging Face checkpoint folder (config.json, model.safetensors with fp16
weights, tokenizer.json, ...) with a train.json: arguments, steps, tokens, loss curve, the train.json of the
checkpoint it continues, and the perplexity and bits per byte of the held-out books under the saved weights.

--resume starts from the weights and the tokenizer of an existing checkpoint folder, with a fresh
optimizer; with --minutes 0 it only measures that checkpoint. The learning rate follows the wall clock, so
a run ends when it should on a busy machine too. The checkpoint is saved every ten minutes, and once more
on Ctrl-C. Needs torch, transformers, tokenizers and numpy.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from books import (
    Texts,
    UserError,
    batches,
    encode,
    held_out_windows,
    hf,
    load_checkpoint,
    measure,
    new_tokenizer,
    read_corpus,
    save,
    window_losses,
)
from optimization import new_optimizers, rate_at

GLIMPSE_WINDOWS = 48  # held-out windows looked at during the run; the end measures all of them


def parse_arguments() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", nargs="+", required=True, type=Path, metavar="DIR", help="folders of .txt books")
    add("--held-out", nargs="+", required=True, metavar="FILE", help="names of books never trained on")
    add("--repeat", nargs="*", default=[], type=repeat, metavar="FILE=N", help="show a book N times as often")
    add("--out", required=True, type=Path, metavar="OUT", help="checkpoint folder to write")
    add("--minutes", type=float, default=85, help="wall time to train; the measurement comes after it (85)")
    add("--resume", type=Path, metavar="OLD", help="continue this checkpoint, with its sizes and tokenizer")
    add("--layers", type=int, default=6, help="layers of a new model (6)")
    add("--width", type=int, default=256, help="width of a new model (256)")
    add("--heads", type=int, default=4, help="attention heads of a new model (4)")
    add("--vocab", type=int, default=8192, help="tokens of a new tokenizer (8192)")
    add("--context", type=int, default=512, help="positions of a new model (512)")
    add("--batch", type=int, default=16, help="windows per step (16)")
    add("--rate", type=float, default=2e-3, help="peak learning rate (2e-3; about 1e-3 to continue)")
    add("--warmup", type=int, default=100, metavar="STEPS", help="steps of linear warm-up (100)")
    add("--save-minutes", type=float, default=10, help="save the checkpoint this often (10)")
    add("--report", type=int, default=100, metavar="STEPS", help="steps between points of the curve (100)")
    add("--device", default="cpu", help="torch device (cpu)")
    add("--bf16", action="store_true", help="compute in bfloat16; only on devices built for it")
    add("--compile", action="store_true", help="use torch.compile (needs a C++ compiler on a CPU)")
    add("--seed", type=int, default=0, help="seed of the weights and of the order of the texts (0)")
    args = parser.parse_args()
    for name in ("layers", "width", "heads", "vocab", "batch", "report"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.context < 2 or args.vocab > 2**16 or args.width % args.heads:
        parser.error("--context must be 2 or more, --vocab 65536 or less, --width a multiple of --heads")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {args.device}: {error}")
    return args


def repeat(item: str) -> tuple[str, int]:
    """A FILE=N of --repeat."""
    name, _, times = item.rpartition("=")
    if not name or not times.isdigit() or int(times) < 1:
        raise argparse.ArgumentTypeError(f"{item!r} is not FILE=N with N of 1 or more")
    return name, int(times)


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that counted, as train.json keeps them: names of folders, never whole paths."""
    ignored = {"layers", "width", "heads", "vocab", "context"} if args.resume else set()
    names = {key: value.resolve().name for key, value in vars(args).items() if isinstance(value, Path)}
    corpus = [folder.resolve().name for folder in args.corpus]
    values = {**vars(args), **names, "corpus": corpus, "repeat": dict(args.repeat)}
    return {key: value for key, value in values.items() if key not in ignored}


def earlier_record(folder: Path | None) -> Any:
    """The train.json of the checkpoint that a run continues, if there is one."""
    path = folder / "train.json" if folder else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def new_model(args: argparse.Namespace, vocab: int) -> Any:
    """A GPT-2 of the asked sizes with random weights."""
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=vocab,
            n_positions=args.context,
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.heads,
            bos_token_id=0,
            eos_token_id=0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


class Trainer:
    """One training run: the model, its data, and the loop that ends with the clock."""

    def __init__(self, args: argparse.Namespace, texts: list[str], books: Texts) -> None:
        """Load or make the model, and cut the texts into windows."""
        self.args, self.started, self.stopped = args, time.time(), False
        torch.manual_seed(args.seed)
        if args.resume:
            self.model, self.tokenizer = load_checkpoint(args.resume)
        else:
            self.tokenizer = new_tokenizer(texts, args.vocab, args.context)
            self.model = new_model(args, len(self.tokenizer))
        self.model.to(args.device).train()
        self.optimizers = new_optimizers(self.model)
        self.forward: Any = torch.compile(self.model) if args.compile else self.model
        context, data = self.model.config.n_positions, encode(self.tokenizer, texts)
        self.batches = batches(data, args.batch, context, args.seed)
        windows = [w for text in books.values() for w in held_out_windows(self.tokenizer, text, context)]
        self.glimpse = windows[:: max(1, len(windows) // GLIMPSE_WINDOWS)]
        self.record: dict[str, Any] = {
            "arguments": recorded(args),
            "finished": False,
            "steps": 0,
            "tokens": 0,
            "held_out": None,
            "curve": [],
            "resumed_from": earlier_record(args.resume),
        }
        print(f"{self.model.num_parameters():,} parameters, {len(data):,} tokens to train on", flush=True)

    def stop(self, number: int, _: object) -> None:
        """Take Ctrl-C or SIGTERM as a wish to end after this step; a second one ends at once."""
        print("stopping after this step", flush=True)
        self.stopped = True
        signal.signal(number, signal.SIG_DFL)

    def step(self, done: float) -> torch.Tensor:
        """One batch; its loss."""
        rate = self.args.rate * rate_at(self.record["steps"], done, self.args.warmup)
        ids = next(self.batches).to(self.args.device)
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
            loss = self.forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.record["steps"] += 1
        self.record["tokens"] += ids.numel()
        return torch.as_tensor(loss.detach())

    def report(self, losses: list[torch.Tensor]) -> None:
        """Add a point to the curve: mean training loss since the last, and a look at the held-out books."""
        self.model.eval()
        nats, tokens = window_losses(self.model, self.glimpse)
        self.model.train()
        seconds, record = round(time.time() - self.started), self.record
        point = {
            "step": record["steps"],
            "tokens": record["tokens"],
            "seconds": seconds,
            "train_loss": round(float(torch.stack(losses).mean()), 4),
            "held_out_loss": round(nats / tokens, 4),
        }
        record["curve"].append(point)
        print(point, f"{record['tokens'] / max(1, seconds):.0f} tokens/s", flush=True)

    def train(self) -> None:
        """Steps until the time is gone, with a point of the curve and a saved checkpoint now and then."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)
        losses: list[torch.Tensor] = []
        saved, seconds = time.time(), max(1e-9, 60 * self.args.minutes)
        while not self.stopped and (done := (time.time() - self.started) / seconds) < 1:
            losses.append(self.step(done))
            if self.record["steps"] % self.args.report == 0:
                self.report(losses)
                losses = []
            if time.time() - saved > 60 * self.args.save_minutes:
                self.save()
                saved = time.time()
        if losses:
            self.report(losses)
        if not self.stopped:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def save(self) -> None:
        """Write what the run has so far."""
        save(self.args.out, self.model, self.tokenizer, self.record)


def make(args: argparse.Namespace) -> int:
    """Train, save, measure what was saved, and put the figures into train.json; the exit status."""
    texts, books = read_corpus(args.corpus, args.held_out, dict(args.repeat))
    trainer = Trainer(args, texts, books)
    trainer.train()
    trainer.save()
    if trainer.stopped:
        print("stopped before its time: saved, not measured")
        return 130
    trainer.record["held_out"] = measure(args.out, books, args.device)
    trainer.record["finished"] = True
    trainer.save()
    return 0


def main() -> int:
    """Run with short messages for what the user can put right."""
    args = parse_arguments()
    try:
        return make(args)
    except (UserError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
