"""The same model on other processors, by emulation: `make emulate`.

Builds models/demo in four ways, runs `gpt2-edge check` on each under every processor, prints two Markdown tables and
writes build/emulation/results.json. Needs Debian on x86-64 with qemu-user-static; downloads 55 MB for arm64, once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.emulation.arm64 import make_root
from tests.emulation.processors import (
    NATIVE,
    PLACE,
    PROCESSORS,
    REPOSITORY,
    Processor,
    environment,
    find_emulator,
    python_on,
)

FOLDERS = {
    "int8 block": ["--precision", "int8", "--kernel", "block"],
    "int8 dense": ["--precision", "int8", "--kernel", "dense"],
    "int4": ["--precision", "int4"],
    "fp32": ["--precision", "fp32"],
}
Results = list[dict[str, Any]]


def main() -> int:
    """Print the tables. Returns 0 if every check passes, 1 if one does not or cannot run, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = f"of {', '.join(PROCESSORS)} (default: all)"
    parser.add_argument("--only", nargs="+", choices=PROCESSORS, metavar="NAME", default=[*PROCESSORS], help=about)
    given = parser.parse_args()
    try:
        results = run([PROCESSORS[name] for name in given.only])
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except (OSError, RuntimeError) as error:
        say(f"error: {error}")
        return 1
    print(f"{check_table(results)}\n\n{time_table(results)}")
    return 0 if all(result["passed"] for result in results) else 1


def run(processors: list[Processor]) -> Results:
    """Every folder on every processor; written to results.json as they come."""
    prepare(processors)
    folders = {name: build(name) for name in FOLDERS}
    results: Results = []
    for processor, (name, folder) in itertools.product(processors, folders.items()):
        start = time.perf_counter()
        found = measure(processor, folder)
        results.append({"processor": processor.name, "folder": name} | found)
        (PLACE / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        say(f"{processor.name}, {name}: {verdict(found)} ({time.perf_counter() - start:.0f} s)")
    return results


def prepare(processors: list[Processor]) -> None:
    """See that the emulators are there, and Python for arm64. Raises FileNotFoundError, RuntimeError."""
    machines = {processor.machine for processor in processors if processor is not NATIVE}
    for machine in machines:
        find_emulator(machine)
    PLACE.mkdir(parents=True, exist_ok=True)
    if "aarch64" in machines:
        say("Python for arm64")
        make_root(PLACE)


def build(name: str) -> Path:
    """A build of the demo, made anew."""
    say(f"build: {name}")
    folder = PLACE / "models" / name.replace(" ", "-")
    command = [sys.executable, "export/build.py", "models/demo", *FOLDERS[name], "--output", str(folder)]
    _run([*command, "--no-reference", "--verify", "none", "--force"])
    return folder


def measure(processor: Processor, folder: Path) -> dict[str, Any]:
    """What `tests.emulation.measure` prints on that processor. Raises RuntimeError where it fails."""
    command = [*python_on(processor), "-m", "tests.emulation.measure", str(folder)]
    found: dict[str, Any] = json.loads(_run(command, environment(processor)))
    return found


def _run(command: list[str], variables: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=variables, cwd=REPOSITORY, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def verdict(found: dict[str, Any]) -> str:
    """One word, and what `load` said."""
    return ("ok" if found["passed"] else "NOT OK") + (", warned" if found["warnings"] else "")


def check_table(results: Results) -> str:
    """What was checked, a row a processor and folder."""
    lines = ["| processor | model | ids the same | largest difference | allowed | check | warned at load |"]
    lines.append("|---|---|---|---|---|---|---|")
    for found in results:
        same = f"{found['n_likeliest']} of {found['n_tokens']}"
        figures = f"{same} | {found['largest_difference']:.6f} | {found['tolerance']}"
        warned = "another kernel suits" if found["warnings"] else "no"
        check = "ok" if found["passed"] else "**NOT OK**"
        lines.append(f"| {_title(found)} | {found['folder']} | {figures} | {check} | {warned} |")
    pairs = (f"{name} {_farthest(results, name):.6f}" for name in FOLDERS)
    return "\n".join([*lines, "", f"Largest difference between any two of these processors: {', '.join(pairs)}."])


def time_table(results: Results) -> str:
    """One decode step on one thread, relative to the dense kernel on the same processor: which kernels run."""
    lines = [f"| one step, relative | {' | '.join(FOLDERS)} |", f"|---|{'---|' * len(FOLDERS)}"]
    for _, group in itertools.groupby(results, key=lambda found: found["processor"]):
        steps = {found["folder"]: found for found in group}
        dense = steps["int8 dense"]["step_ms"]
        cells = (f"{steps[name]['step_ms'] / dense:.1f}" for name in FOLDERS)
        lines.append(f"| {_title(steps['int8 dense'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _title(found: dict[str, Any]) -> str:
    processor = PROCESSORS[found["processor"]]
    about = ", ".join([processor.machine, *found["instructions"]]) if processor is NATIVE else processor.about
    return f"{processor.name} ({about})"


def _farthest(results: Results, name: str) -> float:
    """Between two processors' log-probabilities of one folder's recorded ids."""
    columns = zip(*(found["logprobs"] for found in results if found["folder"] == name), strict=True)
    return float(max(max(column) - min(column) for column in columns))


def say(line: str) -> None:
    """Progress, to standard error."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
