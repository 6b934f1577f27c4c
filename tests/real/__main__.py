"""A real checkpoint at every precision, beside what others have published of it: `make real MODEL=gpt2`.

Builds int8 (the default, and in blocks), int4 and fp32 with export/build.py, and prints one table: WikiText-2 by
transformers' recipe and by lm-evaluation-harness's, LAMBADA, agreement with recorded outputs of OpenAI's gpt2, KL
divergence, kernels, speed and memory. report.md and report.json have the same, written after each model.

python -m tests.real gpt2
python -m tests.real path/to/checkpoint --limit 50 -- --no-reference

What follows `--` goes to every build. A text that is not there leaves its columns out.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from export.checkpoint.checkpoint import model_name
from runtime._json import read_json
from runtime.model.config import read_config
from tests.benchmarks.bench import count, machine
from tests.conftest import REPOSITORY, SHARED_DATA
from tests.real import measure, models
from tests.real.published import size_of
from tests.real.report import Report, Row

PLACE = REPOSITORY / "build" / "real"
TEXTS = {
    "wikitext": SHARED_DATA / "wikitext2" / "wiki.test.raw",
    "lambada": SHARED_DATA / "lambada" / "lambada_test.jsonl",
}
WHAT = {
    "wikitext": "WikiText-2's wiki.test.raw, as it was published",
    "lambada": 'OpenAI\'s lambada_test.jsonl, a JSON object {"text": ...} a line',
}


def main(arguments: list[str] | None = None) -> int:
    """Run for a terminal: 0 done, 1 a build was refused or a model could not be measured, 130 interrupted."""
    given, options = parse(sys.argv[1:] if arguments is None else arguments)
    place: Path = given.output or PLACE / model_name(given.checkpoint)
    texts, missing = find_texts(given)
    report = Report(given.checkpoint, f"{machine()}, {given.threads} threads", limit=given.limit, missing=missing)
    status = 0
    try:
        for name in given.precisions:
            row = take(name, given, options, place, texts, report)
            report.rows.append(row)
            report.write(place)
            status = status or int(row.problem is not None)
    except KeyboardInterrupt:
        print("\ninterrupted: the table has what was measured", file=sys.stderr)
        status = 130
    print(f"\n{report.markdown()}")
    return status


def take(
    name: str, given: argparse.Namespace, options: list[str], place: Path, texts: dict[str, Path], report: Report
) -> Row:
    """Build and measure one precision; a failure of either is the row's problem."""
    say(f"{name}: build")
    built = models.build(given.checkpoint, name, place, options, reuse=given.reuse)
    if built.refused:
        return Row(name, problem=f"{name} was not built: {built.refused}")
    config = read_config(built.folder)
    report.n_positions, report.size = config.n_positions, size_of(config)
    report.weights = read_json(built.folder / "quality.json").get("weights")
    measures, kernel, upgraded = measure.read_quality(built.folder)
    row = Row(name, measures, kernel, upgraded)
    row.measures["disk"] = sum(path.stat().st_size for path in built.folder.rglob("*") if path.is_file())
    if built.seconds is not None:
        row.measures["build"] = built.seconds
    try:
        say(f"{name}: speed")
        row.measures |= measure.measure_speed(built.folder, given.threads)
        row.measures |= measure.measure_recorded(built.folder)
        say(f"{name}: texts")
        row.measures |= measure.measure_texts(built.folder, texts, given.limit, given.threads)
    except (OSError, ValueError, RuntimeError) as error:
        row.problem = f"{name} was built, and not measured in full: {error}"
    return row


def find_texts(given: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """The texts that are there, and for each other one a line that says what to do."""
    paths = {task: getattr(given, task) or default for task, default in TEXTS.items()}
    missing = [
        f"No text at {path}, so the columns of {task} are left out; --{task} FILE names {WHAT[task]}."
        for task, path in paths.items()
        if not path.is_file()
    ]
    for line in missing:
        print(line, file=sys.stderr)
    return {task: path for task, path in paths.items() if path.is_file()}, missing


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what goes to every build."""
    options: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        prog="tests.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", default="gpt2", metavar="MODEL", help="a hub id, or a folder (default: gpt2)")
    for task, path in TEXTS.items():
        add(f"--{task}", type=Path, metavar="FILE", help=f"{WHAT[task]} (default: {path})")
    about = f"of {', '.join(models.PRECISIONS)} (default: all)"
    add(
        "--precisions",
        nargs="+",
        choices=models.PRECISIONS,
        metavar="NAME",
        default=list(models.PRECISIONS),
        help=about,
    )
    add("--limit", type=count, metavar="N", help="the first N lines of each text alone: a trial (default: all)")
    add("--threads", type=count, default=os.cpu_count() or 1, help="of a pass (default: one a processor)")
    add("--output", type=Path, metavar="DIR", help="reports and model folders (default: build/real/MODEL)")
    add("--reuse", action="store_true", help="measure the model folders that an earlier run built there")
    given = parser.parse_args(arguments)
    for task in TEXTS:
        path = getattr(given, task)
        if path and not path.is_file():
            parser.error(f"argument --{task}: there is no file {path}")
    return given, options


def say(what: str) -> None:
    """Announce a step."""
    print(what, flush=True)


def interrupt(_number: int, _frame: object) -> None:
    """Ends the run as Ctrl-C does, so that no build is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
