"""Instructions a token on small devices' processors: `make emulate-instructions`.

QEMU's user-mode emulation counts what GPT-2 124M (random weights) executes on one thread of a Cortex-A72 (Raspberry
Pi 4), a Cortex-A76 (Raspberry Pi 5) and a Nehalem (as an old Atom: SSE only), dense, in blocks and at int4: a prompt,
and single tokens after it, the runtime's Python included. Counts are exact and need no quiet machine, but they are no
times: a processor takes more or less than one cycle for an instruction, and waits for memory.

Needs Debian on x86-64 with qemu-user-static and a C compiler; downloads 70 MB once. Takes 20 minutes to an hour; a
count that takes longer than half an hour is given up. Writes build/emulation/instructions.json as counts come.

python -m tests.emulation.instructions --size demo --only cortex-a76
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import documents
from tests.benchmarks.statistic import table
from tests.emulation.__main__ import prepare, say
from tests.emulation.counter import count_python
from tests.emulation.counter import prepare as prepare_counter
from tests.emulation.processors import PLACE, PROCESSORS, REPOSITORY

NAMES = ("cortex-a72", "cortex-a76", "Nehalem")
KINDS = {
    "dense": ["--kernel", "dense"],
    "block": ["--kernel", "block"],
    "int4": ["--precision", "int4"],
}
N_PROMPT, N_STEPS = 32, 5
MILLION = 1e6
CHECKPOINTS = {"gpt2": "random:gpt2", "demo": "models/demo"}
Counts = dict[str, dict[str, dict[str, float]]]  # processor: kind: "prompt" and "token", of one token each


def main() -> int:
    """Print the table. Returns 0, 1 if something cannot be counted, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulation.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--size", choices=CHECKPOINTS, default="gpt2", help="(default: gpt2)")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/small-devices.md")
    given = parser.parse_args()
    counts: Counts = {}
    missing: dict[str, str] = {}
    status = 0
    try:
        measure_all(counts, missing, given.only, given.size)
    except KeyboardInterrupt:
        say("interrupted: the table has what was counted")
        status = 130
    except (OSError, RuntimeError) as error:
        say(f"error: {error}")
        return 1
    text = markdown(counts, missing, given.size)
    print(text)
    if given.docs and counts:
        documents.replace(documents.SMALL_DEVICES, "instructions", text)
    return status or int(bool(missing))


def measure_all(counts: Counts, missing: dict[str, str], names: list[str], size: str) -> None:
    """Every kind on every processor; written to instructions.json as they come."""
    prepare([PROCESSORS[name] for name in names])
    prepare_counter()
    folders = {kind: build(kind, size) for kind in KINDS}
    for name, (kind, folder) in itertools.product(names, folders.items()):
        start = time.monotonic()
        arguments = ["-m", "tests.emulation.steps", str(folder), str(N_PROMPT), str(N_STEPS)]
        try:
            marks = count_python(PROCESSORS[name], arguments)
        except RuntimeError as error:
            missing[f"{name}, {kind}"] = str(error)
            say(f"missing: {name}, {kind}: {error}")
            continue
        counts.setdefault(name, {})[kind] = a_token(marks)
        record = {"size": size, "n_prompt": N_PROMPT, "counts": counts, "missing": missing}
        (PLACE / "instructions.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        say(f"{name}, {kind}: {counts[name][kind]['token'] / MILLION:.0f} million ({time.monotonic() - start:.0f} s)")


def build(kind: str, size: str) -> Path:
    """A model folder, built once."""
    folder = PLACE / "models" / f"{size}-{kind}"
    if not folder.is_dir():
        say(f"build: {size}, {kind}")
        command = [sys.executable, "export/build.py", CHECKPOINTS[size], *KINDS[kind], "--output", str(folder)]
        command += ["--no-reference", "--verify", "none"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=REPOSITORY, check=False)
        if done.returncode:
            raise RuntimeError(f"the build failed: {done.stderr.strip()[-500:]}")
    return folder


def a_token(marks: list[int]) -> dict[str, float]:
    """Instructions of a prompt's token, and of a decoded one: the median of the steps."""
    if len(marks) != N_STEPS + 2:
        raise RuntimeError(f"{N_STEPS + 2} marks were expected, and {len(marks)} came")
    passes = [after - before for before, after in itertools.pairwise(marks)]
    return {"prompt": passes[0] / N_PROMPT, "token": statistics.median(passes[1:])}


def markdown(counts: Counts, missing: dict[str, str], size: str) -> str:
    """Millions of instructions a token, and how many times those of the dense kernel."""
    head = ["millions of instructions a token", *KINDS, *(f"{kind}, prompt of {N_PROMPT}" for kind in KINDS)]
    rows = []
    for name, by_kind in counts.items():
        cells = [_cell(by_kind, kind, what) for what in ("token", "prompt") for kind in KINDS]
        rows.append([f"{name} ({PROCESSORS[name].about})", *cells])
    checkpoint = "models/demo" if size == "demo" else "GPT-2 124M, random weights"
    about = f"{checkpoint}, one thread, counted under emulation; in brackets how many times the dense kernel's."
    return "\n\n".join([table(head, rows), about, *(f"Missing: {what}: {why}" for what, why in missing.items())])


def _cell(by_kind: dict[str, dict[str, float]], kind: str, what: str) -> str:
    if kind not in by_kind:
        return "-"
    millions = by_kind[kind][what] / MILLION
    said = f"{millions:.0f}" if millions >= 10 else f"{millions:.1f}"
    if kind == "dense" or "dense" not in by_kind:
        return said
    return f"{said} ({by_kind[kind][what] / by_kind['dense'][what]:.1f})"


if __name__ == "__main__":
    sys.exit(main())
