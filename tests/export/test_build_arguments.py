"""The build's command line: its help, its names, and what it refuses before any work."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from export import arguments, build
from export.checkpoint.random_weights import SIZES
from export.verify.quality import BOUNDS, Bounds
from tests.support.building import REPOSITORY, make_link, run_build, run_here


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("gpt2", "gpt2-int8"),
        ("owner/name", "name-int8"),
        ("random:gpt2", "random-gpt2-int8"),
        ("random:gpt2 --precision fp32", "random-gpt2-fp32"),
        ("gpt2 --precision int4", "gpt2-int4"),
        ("gpt2 --kernel dense", "gpt2-int8-dense"),
        ("inner", "inner-int8"),
        ("inner/", "inner-int8"),
        ("./inner//", "inner-int8"),
        (".", "here-int8"),
        ("..", "above-int8"),
        ("link", "link-int8"),
    ],
)
def test_names_the_output_after_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str, expected: str
) -> None:
    here = tmp_path / "above" / "here"
    (here / "inner").mkdir(parents=True)
    if checkpoint == "link":
        make_link(here / "link", here / "inner")
    monkeypatch.chdir(here)
    assert arguments.parse(checkpoint.split()).output == here / "models" / expected


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        build.main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    for action in arguments.argument_parser()._actions:
        assert action.help, action.dest
        assert max(action.option_strings, default="CHECKPOINT", key=len) in shown
    assert all(f"random:{size}" in shown for size in SIZES)
    examples = [line.split("  ")[1].split()[2:] for line in shown.splitlines() if line.startswith("  python ")]
    assert len(examples) == 3
    for example in examples:
        arguments.parse(example)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("gpt2 --precision fp32 --block-size 32", "--block-size goes with"),
        ("gpt2 --precision int4 --block-size 128", "--block-size is 32 or 64 with --precision int4"),
        (
            "gpt2 --activations static --precision int4",
            "--activations static goes with --precision int8 without blocks",
        ),
        ("gpt2 --activations static --kernel block", "--activations static goes with --precision int8 without blocks"),
        ("gpt2 --activations static --no-calibration", "--activations static takes ranges from calibration"),
        ("random:gpt2 --activations static", "--activations static takes ranges from calibration"),
        ("gpt2 --no-calibration --precision fp32", "--no-calibration goes with --precision int8 or int4"),
        ("gpt2 --calibration-text t --precision fp32", "--calibration-text goes with int8 or int4"),
        ("gpt2 --calibration-text t --no-calibration", "without --no-calibration"),
        ("random:gpt2 --calibration-text t", "a checkpoint that is no noise"),
        ("gpt2 --max-kl -1", "--max-kl is at least 0"),
        ("gpt2 --verify none --max-kl 1", "--max-kl bounds the verification"),
        ("gpt2 --kernel dense --precision int4", "--kernel dense goes with --precision int8"),
        ("gpt2 --kernel dense --block-size 64", "--kernel dense goes with --precision int8 and without --block-size"),
        ("gpt2 --verify none --eval-text t", "--verify none leaves out"),
        ("gpt2 --no-reference --keep-reference r", "--no-reference does not make"),
        ("gpt2 --output a --keep-reference a", "the same place"),
        ("gpt2 --output a/b --keep-reference a", "one within the other"),
        ("gpt2 --verify none --max-loss 1", "--verify none leaves out"),
        ("gpt2 --max-loss -1", "at least 0"),
        ("gpt2 --max-loss nan", "at least 0"),
        ("gpt2 --max-loss much", "invalid float"),
        ("random:gpt2 --max-loss 1", "random weights do not have"),
        ("random:gpt2 --revision main", "--revision goes with a hub id"),
        (". --revision main", "--revision goes with a hub id"),
        ("gpt2 --block-size 48", "invalid choice: 48"),
        ("gpt2 --precision int3", "invalid choice: 'int3'"),
        ("random:gpt3", "random:gpt2-xl"),
        ("random:", "random:gpt2-xl"),
        ("gpt2 gpt2-xl", "unrecognized arguments: gpt2-xl"),
        ("--outptu x", "unrecognized arguments"),
        ("--prec int8", "unrecognized arguments: --prec"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, *typed.split()) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert shown.startswith("export/build.py: error: ")
    assert reason in shown
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_ends_the_command_with_2(tmp_path: Path) -> None:
    done = run_build("gpt2", "--block-size", "7", cwd=tmp_path)
    assert done.returncode == 2
    assert "choose from 32, 64, 128, 256" in done.stderr.replace("'", "")


@pytest.mark.parametrize(
    ("typed", "kernel"),
    [
        ("gpt2", "dense"),
        ("gpt2 --verify none", "dense"),
        ("gpt2 --no-calibration", "dense"),
        ("random:gpt2", "dense"),
        ("gpt2 --kernel dense", "dense"),
        ("gpt2 --activations static", "static"),
        ("gpt2 --kernel block", "block 64"),
        ("gpt2 --block-size 32", "block 32"),
        ("gpt2 --precision int4", "int4 32"),
        ("gpt2 --precision int4 --block-size 64", "int4 64"),
        ("gpt2 --precision fp32", "fp32"),
    ],
)
def test_the_usual_kernel(typed: str, kernel: str) -> None:
    assert arguments.parse(typed.split()).usual_kernel == kernel


def test_bounds_are_those_of_the_precision_unless_given() -> None:
    assert arguments.parse(["gpt2"]).bounds == BOUNDS["int8"]
    assert arguments.parse(["gpt2", "--precision", "int4"]).bounds == BOUNDS["int4"]
    given = arguments.parse(["gpt2", "--max-loss", "3", "--max-kl", "0.5"]).bounds
    assert given == Bounds(mean_kl=0.5, loss_percent=3)
    assert given.p99_kl == 5


def test_blocks_that_do_not_fit_say_which_do() -> None:
    with pytest.raises(ValueError, match="--block-size 32 does"):
        arguments.parse(["gpt2", "--kernel", "block"]).check_widths([96])
    with pytest.raises(ValueError, match="--kernel dense or --precision fp32 does"):
        arguments.parse(["gpt2", "--precision", "int4"]).check_widths([80])


def test_commands_in_the_documentation_are_right() -> None:
    lines = (REPOSITORY / "docs" / "checkpoints.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python export/build.py")]
    assert len(commands) > 8
    for command in commands:
        arguments.parse(shlex.split(command)[2:])


def test_an_adapter_does_not_go_with_noise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(monkeypatch, "random:gpt2", "--adapter", "a") == 2
    assert "--adapter goes with the model it was trained on" in capsys.readouterr().err
    assert arguments.parse(["gpt2", "--adapter", "a", "--adapter", "b"]).adapter == [Path("a"), Path("b")]
