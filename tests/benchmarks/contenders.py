"""Who takes part, and how each is made ready: an environment, and its own form of the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.checkpoint import random_weights as random_checkpoint
from tests.conftest import DEMO, REPOSITORY
from tests.support import outliers

PLACE = REPOSITORY / "build" / "bench"
HERE = Path(__file__).resolve().parent
CHECKPOINT = "checkpoint"
# besides the sizes of random weights: the demo, and the same function with outlier channels
DEMO_SIZE, STRESSED = "demo", "demo-stressed"
STRESS: dict[str, Any] = {"factor": 30, "channels": 6, "places": ("ln_1", "ln_2", "value")}
N_CHECKS, N_CHECK, LEAST_AGREEMENT = 16, 48, 0.75  # prompts, their length, the part whose next id is transformers'


@dataclass(frozen=True)
class Contender:
    """A way to run GPT-2. The bytes are those that a weight of a layer, and of the output layer, takes."""

    title: str
    peer: str  # a module of peers/
    bytes: tuple[float, float]
    source: str = CHECKPOINT  # what it is converted from: this, or another contender
    options: dict[str, str] = field(default_factory=dict)  # of the conversion

    @property
    def requirements(self) -> Path:
        """What its environment holds; where there is none, it runs in this one."""
        return HERE / "peers" / f"{self.peer}.txt"


OURS = "gpt2-edge-int8"
CONTENDERS = {
    OURS: Contender("gpt2-edge int8", "edge", (1, 1), options={"precision": "int8"}),
    "gpt2-edge-int8-block": Contender(
        "gpt2-edge int8 in blocks", "edge", (1 + 4 / 64, 1 + 4 / 64), options={"precision": "int8", "kernel": "block"}
    ),
    # Blocks of 32 have a scale of two bytes, at int4 half a byte of zero point. A third of the output layer is int8.
    "gpt2-edge-int4": Contender(
        "gpt2-edge int4",
        "edge",
        (0.5 + 2.5 / 32, (1 + 2 / 32) / 3 + (0.5 + 2.5 / 32) * 2 / 3),
        options={"precision": "int4"},
    ),
    "gpt2-edge-fp32": Contender("gpt2-edge fp32", "edge", (4, 4), options={"precision": "fp32"}),
    "llama.cpp-q8_0": Contender("llama.cpp Q8_0", "llama_cpp", (34 / 32, 34 / 32), options={"precision": "Q8_0"}),
    "llama.cpp-q4_0": Contender("llama.cpp Q4_0", "llama_cpp", (18 / 32, 210 / 256), options={"precision": "Q4_0"}),
    "ctranslate2-int8": Contender("CTranslate2 int8", "ctranslate2", (1, 1), options={"precision": "int8"}),
    "openvino-int8": Contender("OpenVINO GenAI int8", "openvino", (1, 1)),
    "onnxruntime-genai": Contender("onnxruntime-genai, our int8 folder", "onnxruntime_genai", (1, 1), source=OURS),
    "optimum-int8": Contender(
        "optimum, quantize_dynamic", "optimum", (1, 1), source="optimum-fp32", options={"precision": "int8"}
    ),
    "optimum-fp32": Contender("optimum fp32", "optimum", (4, 4), options={"precision": "fp32"}),
    "transformers-fp32": Contender("transformers fp32", "transformers", (4, 4)),
}


def prepare(name: str, size: str) -> Path:
    """The folder of a contender's weights of that size, made when missing or older than its recipe.

    size: of random weights, or DEMO_SIZE or STRESSED.

    Raises RuntimeError with the reason in one line when the peer cannot be had.
    """
    if name == CHECKPOINT:
        return _checkpoint(size)
    contender = CONTENDERS[name]
    source = prepare(contender.source, size)
    if contender.peer in ("transformers", "onnxruntime_genai"):  # they read their source as it is
        return source
    folder = PLACE / size / name
    if is_older(folder, [source, *_recipe(contender.peer)]):
        _say(f"{contender.title}: {size}")
        partial = folder.with_name("partial")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        ask(contender, "convert", source=str(source), folder=str(partial), **contender.options)
        partial.rename(folder)
        os.utime(folder)
    return folder


def check(name: str) -> float:
    """The part of prompts from the demo's text after which its conversion of the demo generates transformers' next id.

    Raises RuntimeError below LEAST_AGREEMENT: what is measured is not GPT-2.
    """
    folder = prepare(name, DEMO_SIZE)
    noted = PLACE / DEMO_SIZE / f"{name}.json"
    if is_older(noted, [folder]):
        text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
        ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids
        prompts = [ids[begin : begin + N_CHECK] for begin in range(0, N_CHECKS * N_CHECK, N_CHECK)]
        expected = ask(CONTENDERS["transformers-fp32"], "generate", folder=str(DEMO), threads=2, prompts=prompts)
        found = ask(CONTENDERS[name], "generate", folder=str(folder), threads=2, prompts=prompts)
        noted.parent.mkdir(parents=True, exist_ok=True)
        same = sum(a == b for a, b in zip(expected, found, strict=True))
        noted.write_text(json.dumps(same / N_CHECKS), encoding="utf-8")
    agreement = float(json.loads(noted.read_text(encoding="utf-8")))
    if agreement < LEAST_AGREEMENT:
        raise RuntimeError(f"its conversion is wrong: {agreement:.0%} of its ids on the demo are transformers'")
    return agreement


def ask(contender: Contender, task: str, **arguments: Any) -> Any:
    """What a worker in the contender's environment answers. Raises RuntimeError with its reason in one line."""
    return timed_answer(contender, task, **arguments)[1]


def timed_answer(contender: Contender, task: str, **arguments: Any) -> tuple[float, Any]:
    """Seconds from the start of the interpreter to the answer, and the answer."""
    command = [str(environment(contender)), str(HERE / "worker.py")]
    request = json.dumps({"task": task, "peer": contender.peer} | arguments)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=errors, text=True, encoding="utf-8") as process:
            assert process.stdin and process.stdout
            try:
                process.stdin.write(request)
                process.stdin.close()
                answer = process.stdout.read()  # ends with the answer, before the process does
                seconds = time.perf_counter() - start
            except BaseException:
                process.kill()
                raise
        if not answer:
            errors.seek(0)
            raise RuntimeError(_reason(errors.read()) or f"its worker ended with status {process.returncode}")
    return seconds, json.loads(answer)


def environment(contender: Contender) -> Path:
    """The python of the contender's environment, installed again when its requirements change."""
    if not contender.requirements.is_file():
        return Path(sys.executable)
    wanted = contender.requirements.read_text(encoding="utf-8")
    folder = PLACE / "venvs" / contender.peer
    python, stamp = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        _say(f"{contender.peer}: installing, which may compile for minutes")
        venv.create(folder, clear=True, with_pip=True, symlinks=os.name != "nt")
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(contender.requirements)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise RuntimeError(f"it cannot be installed: {_reason(done.stderr)}")
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _checkpoint(size: str) -> Path:
    """A checkpoint of random or stressed weights, written once; the demo's is there."""
    folder = PLACE / size / CHECKPOINT
    if size == DEMO_SIZE:
        return DEMO
    if size == STRESSED and is_older(folder, [*DEMO.iterdir(), Path(outliers.__file__)]):
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        partial = folder.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        if size == STRESSED:
            outliers.write(DEMO, partial, **STRESS)
        else:
            random_checkpoint.write(size, partial)
        partial.rename(folder)
        os.utime(folder)
    return folder


def _recipe(peer: str) -> list[Path]:
    """The code that a conversion depends on."""
    ours = list((REPOSITORY / "export").rglob("*.py")) if peer == "edge" else []
    return [*(HERE / "peers" / f"{module}.py" for module in (peer, "checkpoint", "gguf_file")), *ours]


def is_older(target: Path, sources: Iterable[Path]) -> bool:
    """Whether the target is missing, or older than one of its sources."""
    return not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _reason(errors: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("ERROR") or "Error:" in line]
    return (told or lines or [""])[-1][:300]


def _say(what: str) -> None:
    print(f"preparing {what}", file=sys.stderr, flush=True)
