"""`gpt2-edge surprisal`, and lines of JSON that are printed as they are done."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.cli import parser as cli
from runtime.cli.output import ProgressBar, progress_line
from runtime.generation.completion import Completion
from runtime.model.model import Model
from runtime.scoring.surprisal import Surprisal
from tests.conftest import REPOSITORY
from tests.support.command_line import Command

TEXT = "The old king slept\nin his bed."
LINES = "The old king slept.\n\nA fox isn't\there.\nOnce\n"


def as_json(one: Surprisal) -> dict[str, object]:
    """What JSON makes of a result."""
    value = dataclasses.asdict(one)
    for token in value["tokens"]:
        token["top"] = [alternative._asdict() for alternative in token["top"]]
    found: dict[str, object] = json.loads(json.dumps(value))
    return found


# surprisal ---------------------------------------------------------------------------------------------------------


def test_a_table_of_words(command: Command, demo_fp32: Model, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(TEXT, encoding="utf-8")
    status, out, err = command("surprisal", str(tmp_path / "story.txt"), "--verbose")
    head, *rows = out.splitlines()
    assert (status, head.split()) == (0, ["word", "bits"])
    one = runtime.surprisal(TEXT, model=demo_fp32)
    assert [row.split() for row in rows] == [[word.text, f"{word.surprisal:.2f}"] for word in one.words]
    assert err.startswith(f"{len(one.tokens)} tokens in ")
    assert command("surprisal", stdin=TEXT)[1] == command("surprisal", "-", stdin=TEXT)[1] == out


def test_several_files_are_named(command: Command, tmp_path: Path) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(paths, (TEXT, "Once"), strict=True):
        path.write_text(text, encoding="utf-8")
    status, out, err = command("surprisal", *map(str, paths))
    alone = [command("surprisal", str(path))[1] for path in paths]
    assert (status, err) == (0, "")
    assert out == "".join(f"--- {path}\n{one}" for path, one in zip(paths, alone, strict=True))


def test_tsv_of_lines(command: Command, demo_fp32: Model) -> None:
    status, out, err = command("surprisal", "--lines", "--tsv", stdin=LINES)
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert head == ["source", "index", "begin", "end", "word", "surprisal"]
    expected = []
    for number in (1, 3, 4):
        one = runtime.surprisal(LINES.splitlines()[number - 1], model=demo_fp32)
        expected += [
            [f"-:{number}", str(at), *map(str, word.span), word.text, f"{word.surprisal:.6f}"]
            for at, word in enumerate(one.words)
        ]
    assert rows == expected


def test_tsv_of_tokens_with_alternatives(command: Command, demo_fp32: Model) -> None:
    out = command("surprisal", "--tokens", "--tsv", "--top=2", "--no-bos", stdin=TEXT)[1]
    head, first, *rows = [line.split("\t") for line in out.splitlines()]
    assert head == ["source", "index", "begin", "end", "token", "id", "surprisal", "rank", "entropy", "top"]
    one = runtime.surprisal(TEXT, model=demo_fp32, top=2, bos=False)
    assert first == ["-", "0", "0", "3", "The", str(one.tokens[0].id), "", "", "", ""]
    for row, token in zip(rows, one.tokens[1:], strict=True):
        assert row[4] == token.text.replace("\n", "\\n")
        assert row[5:9] == [str(token.id), f"{token.surprisal:.6f}", str(token.rank), f"{token.entropy:.6f}"]
        assert json.loads(row[9]) == [[each.text, each.surprisal] for each in token.top]


def test_jsonl_holds_all(command: Command, demo_fp32: Model) -> None:
    status, out, _ = command("surprisal", "--lines", "--jsonl", "--top=1", stdin=LINES)
    found = [json.loads(line) for line in out.splitlines()]
    assert (status, [one.pop("source") for one in found]) == (0, ["-:1", "-:3", "-:4"])
    texts = [line for line in LINES.splitlines() if line]
    assert found == [as_json(one) for one in runtime.surprisal(texts, model=demo_fp32, top=1)]


def test_plain_sums_and_strides(command: Command, demo_fp32: Model) -> None:
    text = f"{TEXT} " * 80
    found = json.loads(command("surprisal", "--jsonl", "--no-word-correction", "--stride=100", stdin=text)[1])
    expected = runtime.surprisal(text, model=demo_fp32, word_correction=False, stride=100)
    assert [word["surprisal"] for word in found["words"]] == [word.surprisal for word in expected.words]


def test_a_table_of_tokens(command: Command, demo_fp32: Model) -> None:
    out = command("surprisal", "--tokens", "--top=1", stdin="Once upon")[1]
    head, *rows = out.splitlines()
    assert head.split() == ["token", "bits", "rank", "entropy", "likeliest"]
    for row, token in zip(rows, runtime.surprisal("Once upon", model=demo_fp32, top=1).tokens, strict=True):
        assert token.top[0].text in row
        assert f"{token.surprisal:.2f}" in row.split()


def test_a_reference_is_an_error_bar(
    command: Command, demo_fp32: Model, demo_int8: Model, demo_int8_folder: Path
) -> None:
    how = ["surprisal", "--lines", "--reference", str(demo_int8_folder)]
    texts = [line for line in LINES.splitlines() if line]
    pairs = [
        (one.surprisal or 0.0, other.surprisal or 0.0, one.text)
        for ours, theirs in zip(
            runtime.surprisal(texts, model=demo_fp32), runtime.surprisal(texts, model=demo_int8), strict=True
        )
        for one, other in zip(ours.words, theirs.words, strict=True)
    ]
    differences = np.array([one - other for one, other, _ in pairs])
    correlation = np.corrcoef([one for one, _, _ in pairs], [other for _, other, _ in pairs])[0, 1]
    worst = pairs[int(np.abs(differences).argmax())][2]
    summary = (
        f"{len(pairs)} words: mean absolute difference {np.abs(differences).mean():.4f} bits, "
        f"largest {np.abs(differences).max():.4f} ({worst}), correlation {correlation:.6f}\n"
    )
    assert np.abs(differences).max() > 0
    _, out, err = command(*how, stdin=LINES)
    assert out.endswith(summary)
    assert err == ""
    assert f"{pairs[0][2]}  {pairs[0][0]:>13.2f}  {differences[0]:>+10.3f}".split() == out.splitlines()[2].split()
    _, out, err = command(*how, "--tsv", stdin=LINES)
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0][-2:] == ["reference", "difference"]
    assert [row[-2:] for row in rows[1:]] == [[f"{other:.6f}", f"{one - other:.6f}"] for one, other, _ in pairs]
    assert err == summary
    _, out, err = command(*how, "--jsonl", stdin=LINES)
    words = [word for line in out.splitlines() for word in json.loads(line)["words"]]
    assert [(word["reference"], word["difference"]) for word in words] == [(two, one - two) for one, two, _ in pairs]
    assert err == summary


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ([], "", "the text '' has no tokens"),
        (["--lines"], "\n \n", "every line is blank"),
        (["nowhere.txt"], "", "nowhere.txt: No such file"),
        (["--top=-1"], "a", "top is -1"),
        (["--stride=513"], "a", "stride is 513"),
        (["--reference=nowhere"], "a", "nowhere"),
        (["--tokens", "--reference=nowhere"], "a", "--reference compares words: leave --tokens out"),
    ],
)
def test_what_cannot_be_measured(command: Command, arguments: list[str], stdin: str, said: str) -> None:
    status, out, err = command("surprisal", *arguments, stdin=stdin)
    assert (status, out) == (1, "")
    assert said in err


def test_formats_exclude_each_other(command: Command) -> None:
    with pytest.raises(SystemExit) as exit_:
        command("surprisal", "--tsv", "--jsonl")
    assert exit_.value.code == 2


# the progress ------------------------------------------------------------------------------------------------------


def test_the_bar_is_drawn_at_a_terminal_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.__stderr__", screen)
    monkeypatch.setattr("runtime.cli.output._BAR_PERIOD", 0.0)
    bar = ProgressBar(10, "characters")
    bar.clear()
    assert screen.getvalue() == ""
    bar.add(4)
    bar.add(6)
    bar.clear()
    bar.clear()
    lines = [f"\r{progress_line(n, 10)} characters" for n in (4, 10)]
    assert screen.getvalue() == "".join([*lines, "\r\x1b[K"])
    assert progress_line(10, 10) == f"[{'#' * 24}] 10 of 10"


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressBar(10, "characters").add(10)
    assert capsys.readouterr().err == ""


# complete --jsonl --------------------------------------------------------------------------------------------------


def _lines(out: str) -> list[dict[str, object]]:
    return sorted(map(json.loads, out.splitlines()), key=lambda one: (one["prompt_index"], one["sample_index"]))


def _expected(completions: list[Completion]) -> list[tuple[object, ...]]:
    return [(one.prompt_index, one.sample_index, one.text, one.ids, one.logprobs) for one in completions]


def _found(lines: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [tuple(one[name] for name in ("prompt_index", "sample_index", "text", "ids", "logprobs")) for one in lines]


def test_complete_writes_lines_of_json(command: Command, demo_fp32: Model) -> None:
    typed = ["complete", "Once", "The king", "--n=2", "--max-new-tokens=6", "--temperature=1", "--seed=3", "--jsonl"]
    status, out, err = command(*typed, "--logprobs=1", "--verbose")
    completions = runtime.complete(
        ["Once", "The king"], model=demo_fp32, n=2, max_new_tokens=6, temperature=1.0, seed=3, logprobs=1
    )
    assert status == 0
    assert _found(_lines(out)) == _expected(completions)
    assert len(out.splitlines()) == 4
    assert "24 new in" in err


def test_each_line_is_written_as_it_is_done(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short row is on standard output while a long one is still decoded."""
    seen: list[int] = []
    original = cli.commands.generate_pieces

    def watched(*arguments: object, **named: object) -> object:
        for row, piece in original(*arguments, **named):  # type: ignore[arg-type]
            yield row, piece
            seen.append(row.place.prompt_index if row.finish_reason else -1)

    printed: list[tuple[int, int]] = []

    def print_line(value: dict[str, int]) -> None:
        printed.append((value["prompt_index"], len(seen)))

    monkeypatch.setattr(cli.commands, "generate_pieces", watched)
    monkeypatch.setattr(cli.commands, "print_line", print_line)
    typed = ["complete", "The king", "Once", "--max-new-tokens=12", "--jsonl", "--batch-size=1"]
    assert command(*typed)[0] == 0
    assert [index for index, _ in printed] == [0, 1]
    assert printed[1][1] - printed[0][1] >= 12


def test_lines_of_beams_and_wrong_options(command: Command, demo_fp32: Model) -> None:
    typed = ["complete", "Once", "The king", "--num-beams=2", "--max-new-tokens=4", "--jsonl"]
    completions = runtime.complete(["Once", "The king"], model=demo_fp32, num_beams=2, max_new_tokens=4)
    assert _found(_lines(command(*typed)[1])) == _expected(completions)
    for more, said in (
        (["--n=2"], "at temperature 0 all samples are the same"),
        (["--logprobs=9000"], "logprobs is 9000"),
        (["--length-penalty=2"], "beam search"),
    ):
        status, out, err = command("complete", "Once", "--jsonl", *more)
        assert (status, out) == (1, "")
        assert said in err


# docs/surprisal.md -------------------------------------------------------------------------------------------------

DOC = (REPOSITORY / "docs" / "surprisal.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```console\n\$ gpt2-edge (.*)\n((?:.*\n)+?)```", DOC)


@pytest.mark.parametrize(("typed", "shown"), EXAMPLES, ids=[typed for typed, _ in EXAMPLES])
def test_the_document_shows_what_is_printed(
    typed: str,
    shown: str,
    command: Command,
    demo_int8_folder: Path,
    demo_fp32_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same words; numbers as close as int8 is on another kind of processor, and the order of what is near a tie."""
    (tmp_path / "king.txt").write_text("The old king slept in his bed.\n", encoding="utf-8")
    sentences = "The old king slept\nThe little mouse\n"
    (tmp_path / "sentences.txt").write_text(sentences, encoding="utf-8")
    monkeypatch.setenv("GPT2_EDGE_MODEL", str(demo_int8_folder))
    monkeypatch.chdir(tmp_path)
    arguments = typed.replace("models/demo-fp32", str(demo_fp32_folder)).split()
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    number = r"(?<![\w:])[+-]?\d+\.\d+"
    near_ties = r"(?<=\d  )'.*(?=\n)|(?<=\.\d{2}) +\d+(?= )|(?<=largest )\S+ \(\S+\)"
    found, expected = (re.sub(near_ties, "?", text) for text in (out, shown))
    assert re.sub(r" +", " ", re.sub(number, "N", found)) == re.sub(r" +", " ", re.sub(number, "N", expected))
    numbers, expected_numbers = ([*map(float, re.findall(number, text))] for text in (found, expected))
    assert numbers == pytest.approx(expected_numbers, abs=0.3)
