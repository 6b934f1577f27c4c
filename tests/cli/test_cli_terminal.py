"""The command `gpt2-edge` at a terminal: what it asks for, and that nothing it shows commands the terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runtime
from runtime.cli import parser as cli
from runtime.cli.interactive import SAMPLING
from runtime.cli.output import PlainStream, plain, to_json
from runtime.model.integrity import read_checksums
from runtime.model.model import Model
from tests.conftest import REPOSITORY

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
PROMPT = "Once upon a time"
pty_only = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")


class Typed(io.StringIO):
    """Standard input at a terminal."""

    def isatty(self) -> bool:
        return True


class Terminal:
    """The command in a process whose three streams are one pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "runtime", *arguments]
        env = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPOSITORY, env=env, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str) -> str:
        """What is shown up to a text."""
        while text not in self.shown:
            part = os.read(self.ours, 4096).decode()
            assert part
            self.shown += part.replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def close(self) -> int:
        status = self.process.wait(60)
        os.close(self.ours)
        return status


# the prompt --------------------------------------------------------------------------------------------------------


@pty_only
@pytest.mark.parametrize("leave", ["exit\n", "quit\n", "\x04"])
def test_prompts_have_history_and_an_end(demo_fp32_folder: Path, demo_fp32: Model, leave: str) -> None:
    pytest.importorskip("readline")
    options = ["--max-new-tokens=6", "--temperature=0"]
    terminal = Terminal("generate", "--model", str(demo_fp32_folder), *options)
    text = runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=6)
    terminal.wait_for("> ")
    terminal.type(f"{PROMPT}\n")
    terminal.wait_for(text)
    terminal.wait_for("> ")
    terminal.type("\x10\n")  # Ctrl-P: the line before, which only an editor of lines knows
    terminal.wait_for(text)
    terminal.wait_for("> ")
    terminal.type(leave)
    assert terminal.close() == 0


def test_the_prompt_samples_and_the_command_does_not(
    demo_fp32: Model, demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["generate", "--model", str(demo_fp32_folder), "--max-new-tokens=12"]
    sampled = runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=12, seed=5, **SAMPLING)  # type: ignore[arg-type]
    greedy = runtime.generate(PROMPT, model=demo_fp32, max_new_tokens=12)
    assert sampled != greedy
    for arguments, expected in (
        ([*typed, "--seed=5"], sampled),
        ([*typed, "--temperature=0"], greedy),
        ([*typed, PROMPT], greedy),
    ):
        monkeypatch.setattr("sys.stdin", Typed(f"{PROMPT}\nexit\n"))
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.removeprefix("> ").removesuffix("> ") == f"{expected}\n"


@pty_only
@pytest.mark.parametrize("arguments", [["score"], ["perform", "summarize"], ["complete"]])
def test_what_reads_the_terminal_says_so(demo_fp32_folder: Path, arguments: list[str]) -> None:
    terminal = Terminal(*arguments, "--model", str(demo_fp32_folder))
    terminal.wait_for("Reading the text from the terminal; Ctrl-D on a line of its own ends it.")
    terminal.type(f"{PROMPT}\n\x04")
    assert terminal.close() == 0


# control characters ------------------------------------------------------------------------------------------------


def test_control_characters_are_shown() -> None:
    assert plain("a\x1b[2J\tñ\n\r\x7f\x9b🙂") == "a\\x1b[2J\tñ\n\\x0d\\x7f\\x9b🙂"
    stream = io.StringIO()
    print("a\x1b", "\x9bb", file=PlainStream(stream))
    assert stream.getvalue() == "a\\x1b \\x9bb\n"


def test_json_holds_every_character_and_sends_none() -> None:
    text = "".join(map(chr, range(0x100)))
    shown = to_json(text)
    assert json.loads(shown) == text
    assert plain(shown) == shown


def copy_with(folder: Path, target: Path, name: str, text: str) -> Path:
    """A copy of a model folder whose file has another content, without checksums to differ from."""
    copy = Path(shutil.copytree(folder, target))
    (copy / name).write_text(text, encoding="utf-8")
    (copy / "SHA256SUMS").unlink()
    return copy


def test_what_a_file_says_is_plain(demo_fp32_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality = json.loads((demo_fp32_folder / "quality.json").read_text(encoding="utf-8"))
    quality["precision"] = f"int8{ESCAPE}"
    folder = copy_with(demo_fp32_folder, tmp_path / "model", "quality.json", json.dumps(quality))
    assert cli.main(["info", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "int8\\x1b]0;owned\\x07\\x1b[2J" in shown.out
    assert "\x1b" not in shown.out + shown.err


def test_a_text_is_plain_and_exact_in_json(
    demo_fp32_folder: Path, demo_fp32: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    id_ = demo_fp32.tokenizer.token_to_id("\u011b")  # the byte alphabet's letter for 0x1b
    assert demo_fp32.tokenizer.decode([id_]) == "\x1b"
    typed = ["generate", "Once", "--model", str(demo_fp32_folder), f"--logit-bias={id_}=1000", "--max-new-tokens=3"]
    assert cli.main(typed) == 0
    assert capsys.readouterr().out == "\\x1b\\x1b\\x1b\n"
    assert cli.main([*typed, "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert json.loads(out)["text"] == "\x1b" * 3


def test_a_name_with_control_characters_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  x{ESCAPE}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is damaged") as raised:
        read_checksums(tmp_path)
    assert "\x1b" not in str(raised.value)
