"""What README and docs/ show works: Python and commands run, targets, files and sections exist, tables are complete."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import runtime
from export.arguments import argument_parser as build_parser
from runtime.cli.interactive import SAMPLING
from runtime.cli.parser import argument_parser
from runtime.options import Options
from runtime.server_settings import Settings
from tests.conftest import REPOSITORY
from tests.licences import closure
from tests.support.building import FILES
from tests.support.requirements import asked
from tests.support.wheels import RUNTIME, build_wheel, copy_clone

PAGES = {
    str(path.relative_to(REPOSITORY).as_posix()): path.read_text(encoding="utf-8")
    for folder in (".", "docs", "examples", "packages/demo", "runtime", "runtime/server")
    for path in REPOSITORY.glob(f"{folder}/*.md")
}
STORY = "The old king had three sons. One day the youngest found a golden ring in the forest."
SHELL = ("", "sh", "bash", "shell", "console")  # languages of blocks of commands; others are `text`
OUTSIDE = {  # commands that need what a test has not
    r"make ": "it makes the environment that tests run in, or takes as long as all of them",
    r"(python3? -m )?(pip|uv|npm|apt-get|docker|git|venv) ": "what an index or a registry has",
    r"python export/build\.py (?!--help|models/demo|random:)": "what the hub has",
    r"gpt2-edge build ": "it is export/build.py, which other commands run",
    r"app/bin/|(sudo|echo) |dist/story$": "tests/project/test_single_file.py and test_deploying.py have them",
    r"gpt2-edge classify ": "the reader's classifier",
    r"python -m (tests|pytest)": "it takes minutes, and is tested elsewhere",
    r"pytest": "it is a test itself",
    r"(scp|ssh|dask) ": "other machines",
}
READERS = {  # files that are the reader's
    "lambada_test.jsonl": json.dumps({"text": STORY}) + "\n",
    "rules.txt": STORY * 16,
    "corpus.txt": f"{STORY}\n{STORY}\n",
    "prompts.txt": STORY,
    "story.txt": STORY,
    "king.txt": "The old king slept in his bed.\n",
    "sentences.txt": "The old king slept\nThe little mouse\n",
}
MODELS = ("gpt2-int8", "distilgpt2-int8", "mine-int8", "demo-fp32", "openai-gpt-int8")  # for which the demo stands in
NOT_RUN = "<!-- not run: "  # before a block, with the reason


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line.split("  #")[0] for line in self.text.splitlines()]


def blocks() -> Iterator[Block]:
    for page, text in PAGES.items():
        for before, language, block in re.findall(r"^([^\n]*)\n+```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if NOT_RUN not in before:
                yield Block(page, language, block)


BLOCKS = list(blocks())
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands_of(block: Block) -> Iterator[str]:
    """One a line, or as many lines as it is continued on; where some begin with $, the others are what they print."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        if command := re.split(r"(?:^|\s)#", line)[0].strip():
            yield command.removeprefix(".venv/bin/")


SHOWN = list(dict.fromkeys(command for b in BLOCKS if b.language in SHELL for command in commands_of(b)))
RUN = [command for command in SHOWN if not any(re.match(pattern, command) for pattern in OUTSIDE)]
COMMANDS = [command.split("| ")[-1] for command in SHOWN if re.match(r"(printf .*\| )?gpt2-edge ", command)]
BUILDS = [command for command in SHOWN if command.startswith("python export/build.py")]


def subcommands() -> set[str]:
    actions = argument_parser()._actions
    return next(set(action.choices) for action in actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    given = argument_parser().parse_args(shlex.split(command.split(" < ")[0])[1:])
    assert callable(given.command)


@pytest.mark.parametrize("command", BUILDS)
def test_builds_parse(command: str) -> None:
    assert build_parser().parse_args(shlex.split(command)[2:]).checkpoint


def test_every_command_is_shown() -> None:
    assert {command.split()[1] for command in COMMANDS} == subcommands()
    assert BUILDS


@pytest.mark.parametrize("block", PYTHON, ids=[block.page for block in PYTHON])
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.page, "exec")


@pytest.fixture
def place(demo_int8_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the repository after `make demo`, with the reader's files."""
    for path in REPOSITORY.iterdir():
        if path.name not in ("models", "build") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path, target_is_directory=path.is_dir())
    shutil.copytree(demo_int8_folder, tmp_path / "models" / "demo-int8")
    (tmp_path / "models" / "demo").symlink_to(REPOSITORY / "models" / "demo", target_is_directory=True)
    for name, text in READERS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # The pages say that it is set where a command names no model.
    monkeypatch.setenv("GPT2_EDGE_MODEL", "models/demo-int8")
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return tmp_path


def add_models(place: Path, text: str) -> None:
    """The models that a command or a program names and that a test has not: the demo under their names."""
    for name in MODELS:
        if f"models/{name}" in text:
            shutil.copytree(place / "models" / "demo-int8", place / "models" / name)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize("command", RUN)
def test_commands_run(place: Path, command: str) -> None:
    add_models(place, command)
    if command.startswith("python export/build.py models/demo"):  # as in a fresh clone
        shutil.rmtree(place / "models" / "demo-int8")
    if re.match("gpt2-edge serve", command):
        process = subprocess.Popen(f"exec {command} --port 0", shell=True, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        assert "Ctrl-C stops" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=60), process.returncode) == ((None, ""), 130)
        return
    done = subprocess.run(
        command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or re.search(r"> ?\S+$|--output |--npy ", command)


def test_most_commands_run() -> None:
    assert len(RUN) > 12


@contextlib.contextmanager
def stood_in(code: str) -> Iterator[str]:
    """The code with addresses of this machine in place of those that the documents name."""
    with contextlib.ExitStack() as stack:
        if "127.0.0.1:8000" in code:
            from tests.support.serving import running

            server = stack.enter_context(running(stack.enter_context(runtime.load("models/demo-int8"))))
            code = code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        if "scheduler:8786" in code:
            from distributed import LocalCluster

            cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
            code = code.replace("scheduler:8786", stack.enter_context(cluster).scheduler_address)
            code = code.replace("/models/gpt2-int8", "models/demo-int8")
        yield code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other projects
@pytest.mark.parametrize("block", PYTHON, ids=[block.page for block in PYTHON])
def test_python_runs(block: Block, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_models(place, block.text)
    with runtime.load("models/demo-int8") as model, stood_in(block.text) as code:
        exec(code, {"runtime": runtime, "model": model, "article": STORY, "passage": STORY})
    assert "print(" not in block.text or capsys.readouterr().out


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    shown = {
        target for command in SHOWN if (found := re.match(r"make ([a-z-]+)\b", command)) for target in found.groups()
    }
    inline = {target for text in PAGES.values() for target in re.findall(r"`make ([a-z-]+)\b", text)}
    assert {"demo", "test", "bench-quick", "docs"} <= shown | inline
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in shown | inline), shown | inline


def rows_under(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, or after a table's own head."""
    table = re.search(r"^\|.*\n\|[-| ]+\n((?:\|.*\n)+)", PAGES[page][PAGES[page].index(heading) :], re.MULTILINE)
    assert table
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table[1].splitlines()]


def names(rows: list[list[str]]) -> list[str]:
    """What the first cells name in code."""
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]


def test_defaults_are_as_they_are_stated() -> None:
    stated = [row[1:] for row in rows_under("docs/python.md", "| | temperature | top_p | new tokens |")]
    plain, server = Options(), pytest.importorskip("runtime.server.openai.answer", exc_type=ImportError)
    script = (REPOSITORY / "runtime/server/transport/static/page.js").read_text(encoding="utf-8")
    sliders = dict(re.findall(r'^  \["(\w+)", [\d.]+, [\d.]+, [\d.]+, ([\d.]+),', script, re.MULTILINE))
    assert (plain.temperature, plain.top_p) == (0, 1)
    assert stated == [
        ["0 (greedy)", "off", str(plain.max_new_tokens)],
        [str(SAMPLING["temperature"]), str(SAMPLING["top_p"]), str(plain.max_new_tokens)],
        [sliders[name] for name in ("temperature", "top_p", "max_tokens")],
        ["1", "off", str(server.DEFAULT_MAX_TOKENS)],
    ]


def test_every_option_has_a_row_with_its_default() -> None:
    rows = rows_under("docs/python.md", "## Options")
    stated = {name: ast.literal_eval(row[1]) for name, row in zip(names(rows), rows, strict=True)}
    assert stated == {field.name: field.default for field in dataclasses.fields(Options)}


@pytest.mark.parametrize("kind", [runtime.Completion, runtime.Score])
def test_every_field_has_a_row(kind: type) -> None:
    fields = {field.name for field in dataclasses.fields(kind)}
    properties = {name for name, value in vars(kind).items() if isinstance(value, property)}
    assert set(names(rows_under("docs/python.md", f"## `{kind.__name__}`"))) == fields | properties


def test_every_public_function_is_in_the_guide_and_in_the_reference() -> None:
    functions = {name for name in runtime.__all__ if inspect.isfunction(getattr(runtime, name))}
    assert functions <= set(names(rows_under("docs/python.md", "| function | returns |")))
    assert set(runtime.__all__) <= set(re.findall(r"^::: runtime\.(\w+)$", PAGES["docs/reference.md"], re.MULTILINE))


def test_every_setting_of_the_server_has_a_row_with_its_default() -> None:
    rows = rows_under("docs/server.md", "## Settings")
    stated = {row[0].strip("`"): row[1] for row in rows}
    fields = {f"--{field.name.replace('_', '-')}": field.default for field in dataclasses.fields(Settings)}
    assert stated.keys() == fields.keys()
    for name, default in fields.items():
        if default is not None and not isinstance(default, bool):
            assert stated[name] == f"{default:g}" if isinstance(default, float) else str(default), name


def test_every_file_of_a_folder_has_a_row() -> None:
    assert set(names(rows_under("docs/model-folder.md", "| file | |"))) >= FILES


def test_every_option_of_the_build_exists() -> None:
    shown = {
        name for row in names(rows_under("docs/building.md", "## Options")) for name in re.findall(r"--[a-z-]+", row)
    }
    known = {name for action in build_parser()._actions for name in action.option_strings}
    assert shown <= known


def test_the_wheel_has_the_size_that_is_stated(tmp_path: Path) -> None:
    stated = re.search(r"wheel of about (\d+) kB", PAGES["docs/small-devices.md"])
    assert stated
    wheel = build_wheel(copy_clone(tmp_path / "clone") / RUNTIME, tmp_path / "wheels")
    assert wheel.stat().st_size / 1000 == pytest.approx(int(stated[1]), rel=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="the number is of Linux")
def test_as_many_packages_come_along_as_is_stated() -> None:
    stated = re.search(r"for the (\d+) packages of the runtime", PAGES["docs/small-devices.md"])
    assert stated
    assert int(stated[1]) == len(closure(asked()))


def anchors(text: str) -> set[str]:
    """The addresses of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", head.lower())) for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 140
