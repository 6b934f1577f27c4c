"""Who takes part, and how each is made ready: an environment, and its own form of the same weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
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
# Seconds. A contender that takes longer is given up, so that a benchmark ends.
LIMIT, CONVERSION_LIMIT = 900, 3600


@dataclass(frozen=True)
class Contender:
    """A way to run GPT-2. The bytes are those that a weight of a layer, and of the output layer, takes."""

    title: str
    peer: str  # a module of peers/
    bytes: tuple[float, float]
    source: str = CHECKPOINT  # what it is converted from: this, or another contender
    options: dict[str, str] = field(default_factory=dict)  # of the conversion
    converts: bool = True  # False: it opens its source as it is
    load: dict[str, str] = field(default_factory=dict)  # options of `Peer`
    shares: str = ""  # the peer whose environment it runs in; "": its own
    is_variant: bool = False  # of another contender: README leaves it out

    @property
    def environment(self) -> str:
        """The name of its environment."""
        return self.shares or self.peer

    @property
    def requirements(self) -> Path:
        """What its environment holds; where there is none, it runs in this one."""
        return HERE / "peers" / f"{self.environment}.txt"


OURS = "gpt2-edge-int8"
OPENVINO = "openvino-int8"
CONTENDERS = {
    OURS: Contender("gpt2-edge int8", "edge", (1, 1), options={"precision": "int8"}),
    "gpt2-edge-int8-cache-fp32": Contender(
        "gpt2-edge int8, fp32 cache",
        "edge",
        (1, 1),
        source=OURS,
        converts=False,
        load={"cache": "fp32"},
        is_variant=True,
    ),
    "gpt2-edge-int8-static": Contender(
        "gpt2-edge int8, static activations",
        "edge",
        (1, 1),
        options={"precision": "int8", "activations": "static"},
        is_variant=True,
    ),
    "gpt2-edge-int8-block": Contender(
        "gpt2-edge int8 in blocks", "edge", (1 + 4 / 64, 1 + 4 / 64), options={"precision": "int8", "kernel": "block"}
    ),
    "gpt2-edge-int8-block-256": Contender(
        "gpt2-edge int8 in blocks of 256",
        "edge",
        (1 + 4 / 256, 1 + 4 / 256),
        options={"precision": "int8", "kernel": "block", "block_size": "256"},
        is_variant=True,
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
    OPENVINO: Contender("OpenVINO GenAI int8", "openvino", (1, 1)),
    "openvino-batching-int8": Contender(
        "OpenVINO GenAI int8, continuous batching",
        "openvino_batching",
        (1, 1),
        source=OPENVINO,
        converts=False,
        shares="openvino",
        is_variant=True,
    ),
    "executorch-int8": Contender("ExecuTorch XNNPACK int8", "executorch", (1, 1)),
    "torchao-int8": Contender("torch.compile, torchao int8", "torchao", (1, 1), options={"precision": "int8"}),
    "torchao-int4": Contender(  # bf16 scale and zero point for each 32 weights
        "torch.compile, torchao int4", "torchao", (0.5 + 4 / 32, 0.5 + 4 / 32), options={"precision": "int4"}
    ),
    "onnxruntime-genai": Contender(
        "onnxruntime-genai, our int8 folder", "onnxruntime_genai", (1, 1), source=OURS, converts=False
    ),
    "optimum-int8": Contender(
        "optimum, quantize_dynamic", "optimum", (1, 1), source="optimum-fp32", options={"precision": "int8"}
    ),
    "optimum-fp32": Contender("optimum fp32", "optimum", (4, 4), options={"precision": "fp32"}),
    "transformers-fp32": Contender("transformers fp32", "transformers", (4, 4), converts=False),
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
    if not contender.converts:
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
    request = json.dumps({"task": task, "peer": contender.peer} | arguments | _load_options(contender, task))
    limit = CONVERSION_LIMIT if task == "convert" else LIMIT
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        # An installed package has bytecode, whatever this environment says.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with subprocess.Popen(
            command, env=environ, stdin=-1, stdout=-1, stderr=errors, text=True, encoding="utf-8"
        ) as process:
            assert process.stdin and process.stdout
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                process.stdin.write(request)
                process.stdin.close()
                answer = process.stdout.read()  # ends with the answer, before the process does
                seconds = time.perf_counter() - start
            except BaseException:
                process.kill()
                raise
            finally:
                timer.cancel()
        if seconds > limit:
            raise RuntimeError(f"{task} took longer than {limit} s")
        if not answer:
            errors.seek(0)
            raise RuntimeError(_reason(errors.read()) or f"its worker ended with status {process.returncode}")
    return seconds, json.loads(answer)


def _load_options(contender: Contender, task: str) -> dict[str, Any]:
    """What a worker passes to `Peer`; a conversion makes none."""
    return {"options": contender.load} if contender.load and task != "convert" else {}


def environment(contender: Contender) -> Path:
    """The python of the contender's environment, installed again when its requirements change.

    Raises RuntimeError with the reason, and the commands that show all of it, where pip fails.
    """
    if not contender.requirements.is_file():
        return Path(sys.executable)
    python = _python(contender)
    if not is_installed(contender):
        _say(f"{contender.environment}: installing, which may compile for minutes")
        venv.create(python.parents[1], clear=True, with_pip=True, symlinks=os.name != "nt")
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(contender.requirements)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise RuntimeError(f"it cannot be installed: {_reason(done.stderr)}; try: {install_command(contender)}")
        _stamp(contender).write_text(contender.requirements.read_text(encoding="utf-8"), encoding="utf-8")
    return python


def is_installed(contender: Contender) -> bool:
    """Whether the contender can run without an installation."""
    requirements = contender.requirements
    if not requirements.is_file():
        return True
    stamp = _stamp(contender)
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == requirements.read_text(encoding="utf-8")


def install_command(contender: Contender) -> str:
    """What a person types to install it, in a shell at the root of the repository."""
    python = _python(contender).relative_to(REPOSITORY).as_posix()
    folder = _python(contender).parents[1].relative_to(REPOSITORY).as_posix()
    requirements = contender.requirements.relative_to(REPOSITORY).as_posix()
    return f"python -m venv {folder} && {python} -m pip install -r {requirements}"


def _python(contender: Contender) -> Path:
    folder = PLACE / "venvs" / contender.environment
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(contender: Contender) -> Path:
    return PLACE / "venvs" / contender.environment / "installed.txt"


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
    return [*(HERE / "peers" / f"{module}.py" for module in (peer, "checkpoint", "gguf_file", "torch_gpt2")), *ours]


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
