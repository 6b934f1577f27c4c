"""All that is measured of one model folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import runtime
from runtime._json import read_json
from runtime.diagnostics.check import forced_logprobs
from runtime.model.model import Model
from runtime.scoring.evaluation import evaluate
from tests.benchmarks.contenders import CONTENDERS, OURS, ask
from tests.conftest import REPOSITORY
from tests.real.published import size_of

RECORDED = REPOSITORY / "export" / "checkpoint" / "openai_gpt2_outputs.json"
Measures = dict[str, float]
LAMBADA = {
    "accuracy": "lambada word",
    "accuracy_stop_words": "lambada stop words",
    "accuracy_last_token": "lambada last token",
    "perplexity": "lambada perplexity",
}
QUALITY = ("mean_kl", "p99_kl", "top1_agreement", "loss_percent")


def measure_texts(folder: Path, texts: dict[str, Path], limit: int | None, threads: int | None) -> Measures:
    """Perplexities and accuracies; `texts`: files by the name of their evaluation, `limit`: lines of each."""
    measures: Measures = {}
    with runtime.load(folder, threads=threads) as model:
        if "wikitext" in texts:
            report = with_progress(model, "wikitext", texts["wikitext"], limit)
            full, half = report["strided"].values()
            measures |= {"strided full": full, "strided half": half}
            measures["rolling"] = report["rolling"]["word_perplexity"]
        if "lambada" in texts:
            report = with_progress(model, "lambada", texts["lambada"], limit)
            measures |= {column: report[name] for name, column in LAMBADA.items()}
    return measures


def with_progress(model: Model, task: str, path: Path, limit: int | None) -> dict[str, Any]:
    """`runtime.evaluate` with a bar for each pass over the text."""
    with tqdm(desc=f"      {task}", unit="") as bar:
        return evaluate(model, task, path, limit, mover(bar))


def mover(bar: Any) -> Callable[[int, int], None]:
    """A progress callback that shows how much of how much is done; a second pass begins anew."""

    def move(done: int, total: int) -> None:
        if done < bar.n:
            bar.reset(total)
        bar.total = total
        bar.update(done - bar.n)

    return move


def measure_recorded(folder: Path) -> Measures:
    """Agreement with what OpenAI's gpt2 is recorded to write: of recorded ids, how many are the likeliest here.

    Empty for a model of another shape.
    """
    recorded = read_json(RECORDED)
    with runtime.load(folder) as model:
        if size_of(model.config) != "gpt2":
            return {}
        likeliest = [hits(model, record) for record in recorded["records"]]
        differences = [difference(model, record) for record in recorded["scored"]]
    n = sum(len(record["ids"]) for record in recorded["records"])
    return {"recorded likeliest": sum(likeliest), "recorded n": n, "recorded difference": float(np.mean(differences))}


def hits(model: Model, record: dict[str, Any]) -> int:
    """How many of a record's ids are the likeliest, each given those recorded before it."""
    logprobs = forced_logprobs(model, record["prompt_ids"], record["ids"])
    return int((logprobs.argmax(-1) == np.array(record["ids"])).sum())


def difference(model: Model, record: dict[str, Any]) -> float:
    """How far the log-probability of a record's ids is off, a token."""
    logprobs = forced_logprobs(model, record["prompt_ids"], record["ids"])
    n = len(record["ids"])
    return abs(float(logprobs[np.arange(n), record["ids"]].sum()) - float(record["logprob"])) / n


def measure_speed(folder: Path, threads: int) -> Measures:
    """Tokens per second, seconds of a prompt, bytes of memory: a turn of the benchmark in a process of its own."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    n_positions = config["n_positions"]
    prompt = min(512, n_positions // 2)
    turn = ask(
        CONTENDERS[OURS],
        "measure",
        folder=str(folder),
        threads=threads,
        vocab_size=config["vocab_size"],
        seed=0,
        prefills=[prompt],
        decodes=[32],
        batches=[],
        n_new=min(64, n_positions - 32),
        n_long=min(1000, n_positions - 2),
    )
    return {
        "decode": turn["decode 32"],
        "prefill rate": prompt / turn[f"prefill {prompt}"],
        "peak": turn.get("peak", 0),
    }


def read_quality(folder: Path) -> tuple[Measures, str, list[dict[str, Any]]]:
    """What the build measured, its kernel in words, and the products that it gave a better one."""
    report = read_json(folder / "quality.json")
    measures = {name: report[name] for name in QUALITY if name in report}
    kernel = str(report.get("kernel") or report["precision"])
    if report["precision"] == "fp32":
        kernel = "fp32"
    elif kernel == "block" and report.get("block_size"):
        kernel = f"block {report['block_size']}"
    return measures, kernel, report.get("upgraded") or []
