"""Damaged model folders: `python -m tests.trials.damage --count 5000`.

Bytes of every file are flipped, cut off and added at random places, and the folder is loaded, and made to write where
it loads, by a process that may die of it. Verified in full, no damage may be accepted; unverified, as `verify="off"`
leaves it, the parsers of onnxruntime and tokenizers stand alone, and what becomes of them is counted.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.trials.memory import build_models
from tests.trials.table import Row, record

KINDS = ("flip", "cut", "extend")
SECONDS = 60.0  # a load that takes longer hangs
MEMORY = 6 << 30  # of a worker, on POSIX: a damaged shape may ask for anything
TRIED = "a byte flipped, cut or added in any file, then loaded with"
CRASH, HANG, ACCEPTED, REFUSED, UNKIND = "crash", "hang", "accepted", "refused", "unkind"


def main() -> int:
    """Print a row a kind of verification; returns 1 for a crash, a hang, or a wrong acceptance under full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="damages of each verification (default: 5000)")
    parser.add_argument("--folder", type=Path, help="model folder (default: the demo, built)")
    parser.add_argument("--verify", choices=["full", "off"], action="append", help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what happened here, too")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return 0
    folder = given.folder or next(iter(build_models()))
    print("| verify | damages | refused | accepted | crashed | hung | other |\n|---|---|---|---|---|---|---|")
    report = {how: try_damages(folder, how, given.count) for how in given.verify or ("full", "off")}
    for how, trials in report.items():
        counts = collections.Counter(trial["outcome"] for trial in trials)
        row = [how, len(trials), *(counts[outcome] for outcome in (REFUSED, ACCEPTED, CRASH, HANG, UNKIND))]
        print(f"| {' | '.join(map(str, row))} |")
    record("damage", [Row(f'{TRIED} `verify="{how}"`', len(trials), tell(trials)) for how, trials in report.items()])
    if given.json:
        given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return int(any(is_bad(how, trial) for how, trials in report.items() for trial in trials))


def tell(trials: Sequence[dict[str, Any]]) -> str:
    """How often each thing happened, those that never may included."""
    counts = collections.Counter(trial["outcome"] for trial in trials)
    told = {"refused by name": REFUSED, "loaded": ACCEPTED, "crashed": CRASH, "hung": HANG, "other": UNKIND}
    return ", ".join(f"{counts[outcome]:,} {what}" for what, outcome in told.items())


def is_bad(how: str, trial: dict[str, Any]) -> bool:
    """Whether a trial went as it never may."""
    return trial["outcome"] in ((CRASH, HANG, UNKIND, ACCEPTED) if how == "full" else (CRASH, HANG))


def try_damages(folder: Path, how: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """So many damages, in turn over files and kinds, at random places: each with its outcome and what was said."""
    rng, names = random.Random(seed), sorted(path.name for path in folder.iterdir())
    with tempfile.TemporaryDirectory() as place, workers(Path(shutil.copytree(folder, Path(place) / "model"))) as ask:
        trials = []
        for index in range(count):
            name, kind = names[index % len(names)], KINDS[index // len(names) % len(KINDS)]
            size = (folder / name).stat().st_size
            damage = {"name": name, "kind": kind, "at": rng.randrange(size), "with": rng.randrange(1, 256)}
            answer = ask(damage | {"verify": how})
            if answer["outcome"] == HANG:  # or the machine was stalled: a hang hangs again
                answer = ask(damage | {"verify": how})
            trials.append(damage | answer)
        return trials


@contextlib.contextmanager
def workers(folder: Path) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Ask a process to damage the folder, load it and mend it; one that dies is followed by another."""
    original = {path.name: path.read_bytes() for path in folder.iterdir()}
    process: subprocess.Popen[str] | None = None

    def ask(damage: dict[str, Any]) -> dict[str, Any]:
        nonlocal process
        if process is None:
            process = start(folder)
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        process.stdin.write(json.dumps(damage) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        was_killed = not timer.is_alive()
        timer.cancel()
        if line:
            return dict(json.loads(line))
        process.communicate()
        code, process = process.returncode, None
        (folder / damage["name"]).write_bytes(original[damage["name"]])
        return {"outcome": HANG if was_killed else CRASH, "said": f"exit code {code}"}

    try:
        yield ask
    finally:
        if process is not None:
            process.communicate()


def start(folder: Path) -> subprocess.Popen[str]:
    """A worker; what native code prints as it dies is of no interest."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.trials.damage", "--work", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def work(folder: Path) -> None:
    """Take damages from standard input, a line each, and answer what became of them."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native code prints to standard output
    for line in sys.stdin:
        damage = json.loads(line)
        with damaged(folder / damage["name"], damage):
            print(json.dumps(outcome(folder, damage["verify"])), file=answers, flush=True)


@contextlib.contextmanager
def damaged(path: Path, damage: dict[str, Any]) -> Iterator[None]:
    """The file with a byte changed at a place, cut off there, or with bytes added; mended afterwards."""
    before = path.read_bytes()
    at, byte = damage["at"], damage["with"]
    changed = {
        "flip": before[:at] + bytes([before[at] ^ byte]) + before[at + 1 :],
        "cut": before[:at],
        "extend": before + bytes([byte]) * (1 + at % 64),
    }
    path.write_bytes(changed[damage["kind"]])
    try:
        yield
    finally:
        path.write_bytes(before)


def outcome(folder: Path, verify: Any) -> dict[str, str]:
    """Load the folder and write a little: accepted, refused with the folder named, or something else."""
    import runtime

    try:
        model = runtime.load(folder, verify=verify, threads=1)
    except (ValueError, OSError) as error:
        return {"outcome": REFUSED if str(folder) in str(error) else UNKIND, "said": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        return {"outcome": UNKIND, "said": f"{type(error).__name__}: {error}"}
    with model:
        try:
            return {"outcome": ACCEPTED, "said": runtime.generate("Once", model=model, max_new_tokens=3)}
        except (RuntimeError, ValueError) as error:  # a graph that opens need not run
            return {"outcome": ACCEPTED, "said": f"{type(error).__name__}: {error}"}
        except BaseException as error:
            return {"outcome": UNKIND, "said": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
