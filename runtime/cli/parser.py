"""The command `gpt2-edge`: text to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import runtime
from runtime.api import BEST_OF
from runtime.cli import commands
from runtime.cli.arguments import (
    Parser,
    add_draft_argument,
    add_folder_argument,
    add_folders_argument,
    add_loading_arguments,
    add_model_argument,
    add_model_arguments,
    add_option_arguments,
    add_prefix_argument,
    read_usage,
)
from runtime.cli.export_stage import BUILD, HOW_TO_GET_IT, find_build_script
from runtime.cli.interactive import SAMPLING
from runtime.cli.output import PlainStream, in_words_of_command_line
from runtime.generation.loop import BATCH_SIZE

_EXAMPLES = {
    "generate": """\
  gpt2-edge generate "Once upon a time" --temperature 0.8 --top-p 0.9
  gpt2-edge generate                    at a terminal: asks for prompts
  printf "Once upon a time" | gpt2-edge generate -""",
    "complete": """\
  gpt2-edge complete "One day" "At night" --n 3 --temperature 0.9 --json""",
    "infill": """\
  gpt2-edge infill "The king lived in" " and had three sons." --max-new-tokens 6 --best-of 32
  gpt2-edge infill "The sky is" ", and so is the sea." --choices " blue" --choices " loud" --json""",
    "score": """\
  gpt2-edge score " Paris." --context "The capital of France is"
  gpt2-edge score - < story.txt""",
    "surprisal": """\
  gpt2-edge surprisal story.txt
  gpt2-edge surprisal sentences.txt --lines --tsv > surprisals.tsv
  gpt2-edge surprisal story.txt --model models/gpt2-int8 --reference models/gpt2-fp32""",
    "classify": """\
  gpt2-edge classify "What a lovely day!" --model models/mood-int8
  gpt2-edge classify reviews.txt --lines --tsv --model models/mood-int8 > labels.tsv""",
    "embed": """\
  gpt2-edge embed sentences.txt --lines --npy embeddings.npy
  gpt2-edge embed "The old king slept." --jsonl""",
    "perform": """\
  gpt2-edge perform translate "Where is the train station?" --field to=Spanish
  gpt2-edge perform choose "The sky is _." --field 'options=["blue", "loud"]'
  gpt2-edge perform summarize - < article.txt""",
    "prefix": """\
  gpt2-edge prefix - --output rules.prefix < rules.txt
  (cat rules.txt; echo "Q: Who may enter?") | gpt2-edge generate - --prefix rules.prefix""",
    "evaluate": """\
  gpt2-edge evaluate lambada lambada_test.jsonl --limit 100""",
    "build": """\
  gpt2-edge build models/demo --no-reference
  gpt2-edge build gpt2 --no-reference   OpenAI's GPT-2, downloaded once
  gpt2-edge build --help                every option, where the export stage is at hand""",
    "serve": """\
  gpt2-edge serve --model models/demo-int8
  gpt2-edge serve models/gpt2-int8 models/demo-int8     two models, by name
  curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
       -d '{"prompt": "Once upon a time", "max_tokens": 40}'""",
    "check": """\
  gpt2-edge check models/demo-int8""",
    "info": """\
  gpt2-edge info models/demo-int8""",
}
_HELP = (["--help"], ["-h"])
_SAMPLED = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in SAMPLING.items())
_GREEDY = (
    "Without options the likeliest token is taken each time (greedy, as in Python), which soon repeats itself; "
    f"{_SAMPLED} samples"
)
_NOTES = {
    "generate": f"{_GREEDY}, and is the default where prompts are typed at a terminal.",
    "complete": f"{_GREEDY}.",
    "infill": "Several middles are sampled and ranked by the probability of the suffix after them; temperature is 1.",
    "surprisal": "Each word counts the end of the word as its own: see docs/surprisal.md.",
    "build": f"It runs export/build.py with the same arguments. {HOW_TO_GET_IT}",
    "perform": "Each task has options of its own, which --show prints.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 when it failed, 130 when interrupted; wrong usage exits with 2.

    Control characters of texts and names are shown, not sent to the terminal: see `runtime.cli.output.plain`.
    """
    if sys.stdout is None:
        # Standard output is closed: nobody wants the text.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A Windows console's own encoding lacks most characters, and a path need not be valid Unicode.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(PlainStream(sys.stdout)))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(PlainStream(sys.stderr)))
        return _parse_and_run(list(sys.argv[1:] if arguments is None else arguments))


def _parse_and_run(arguments: list[str]) -> int:
    if arguments[:1] == [BUILD] and (find_build_script() is not None or arguments[1:] not in _HELP):
        # Not parsed here: the options and --help are those of the export stage.
        return _run(argparse.Namespace(command=commands.build, arguments=arguments[1:]))
    parser = argument_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    given = parser.parse_args(arguments)
    try:
        read_usage(given)
    except (TypeError, ValueError) as error:
        given.parser.error(in_words_of_command_line(str(error)))
    return _run(given)


def _run(given: argparse.Namespace) -> int:
    try:
        status: int = given.command(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, for example `head`, has what it wanted. Without this, the exit would flush into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"gpt2-edge: error: {_explain(error)}", file=sys.stderr)
        return 1
    return status


def _explain(error: Exception) -> str:
    """The message on one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    message = in_words_of_command_line(" ".join(str(error).split()))
    return f"not enough memory: {message}" if isinstance(error, MemoryError) else message


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="gpt2-edge", description=runtime.__doc__)
    parser.add_argument("--version", action="version", version=f"gpt2-edge {runtime.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (about, define) in _COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=about,
            description=textwrap.fill(f"{about[0].upper()}{about[1:]}. {_NOTES.get(name, '')}", 80),
            epilog=f"example:\n{_EXAMPLES[name]}",
        )
        command.set_defaults(command=getattr(commands, name), parser=command, checks_options=False, asks=False)
        define(command)
    return parser


def _define_generate(parser: argparse.ArgumentParser) -> None:
    about = "the text to continue; - reads standard input; without it a terminal asks for prompts"
    parser.add_argument("prompt", nargs="?", help=about)
    parser.set_defaults(checks_options=True, asks=True)
    add_model_arguments(parser)
    add_prefix_argument(parser)
    add_draft_argument(parser)
    add_option_arguments(parser)


def _define_complete(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="the texts to continue; - reads one a line from standard input")
    add("--n", type=int, default=1, metavar="N", help="continuations for each prompt (default: 1)")
    add("--num-beams", type=int, default=1, metavar="N", help="search with so many beams (default: 1, no search)")
    about = "beams compare by log-probability / length ** X (default: 1)"
    add("--length-penalty", type=float, default=1.0, metavar="X", help=about)
    about = "end the search once --num-beams are finished (yes), when others are no better (no, default), or cannot be"
    add("--early-stopping", choices=list(commands.EARLY_STOPPING), default="no", help=about)
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"rows at a time (default: {BATCH_SIZE})")
    add("--logprobs", type=int, default=0, metavar="N", help="alternatives to show for each token, with --json")
    parser.set_defaults(checks_options=True)
    add_model_arguments(parser)
    about = "print each result as one line of JSON, as soon as it is complete"
    add("--jsonl", action="store_const", dest="json", const=commands.LINES, help=about)
    add_prefix_argument(parser)
    add_draft_argument(parser)
    add_option_arguments(parser)


def _define_infill(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="the text before the gap")
    add("suffix", help="the text after it; a word begins with its space")
    add("--best-of", type=int, default=BEST_OF, metavar="N", help=f"middles to sample and rank (default: {BEST_OF})")
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"rows at a time (default: {BATCH_SIZE})")
    add_model_arguments(parser)
    add_prefix_argument(parser)
    add_option_arguments(parser)


def _define_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="the text to score; - or nothing reads standard input")
    parser.add_argument("--context", metavar="TEXT", help="score the text as the continuation of this one")
    about = "of a text without context: a window begins every N tokens (default: the model's context)"
    parser.add_argument("--stride", type=int, metavar="N", help=about)
    about = "of a context that is too long: an error, or leave out its beginning (default: error)"
    parser.add_argument("--overflow", choices=["error", "truncate_left"], default="error", help=about)
    add_model_arguments(parser)
    add_prefix_argument(parser)


def _define_surprisal(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="a text each; - or nothing reads standard input")
    add("--lines", action="store_true", help="every line is a text of its own; blank lines are left out")
    add("--tokens", action="store_true", help="a row for each token, not for each word")
    add("--top", type=int, default=0, metavar="N", help="the N likeliest tokens in the place of each token")
    about = "leave the first token unscored, rather than score it after the beginning of a text"
    add("--no-bos", action="store_true", help=about)
    about = "the plain sum over the tokens of a word, which counts the end of the word before it"
    add("--no-word-correction", action="store_true", help=about)
    about = "a window begins every N tokens of a long text (default: half of the model's context)"
    add("--stride", type=int, metavar="N", help=about)
    about = "another build of the model: print beside each word how much higher its surprisal is than there"
    add("--reference", metavar="FOLDER", help=about)
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--tsv", action="store_true", help="print tab-separated values, with a line of names")
    formats.add_argument("--jsonl", action="store_true", help="print a line of JSON for each text, tokens and words")
    add_loading_arguments(parser)
    add("--verbose", action="store_true", help="close with the speed, on standard error")


def _add_texts(parser: argparse.ArgumentParser) -> None:
    about = "a text, or a file that holds one; - or nothing reads standard input"
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=about)
    about = "every line is a text of its own; blank lines are left out"
    parser.add_argument("--lines", action="store_true", help=about)


def _define_classify(parser: argparse.ArgumentParser) -> None:
    _add_texts(parser)
    formats = parser.add_mutually_exclusive_group()
    about = "print tab-separated values, with a line of names: a row for each text, or for each token"
    formats.add_argument("--tsv", action="store_true", help=about)
    formats.add_argument("--jsonl", action="store_true", help="print a line of JSON for each text")
    add_loading_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="close with the speed, on standard error")


def _define_embed(parser: argparse.ArgumentParser) -> None:
    _add_texts(parser)
    about = "of the hidden states of a text: their mean, or the last token's (default: mean)"
    parser.add_argument("--pooling", choices=["mean", "last"], default="mean", help=about)
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument("--jsonl", action="store_true", help="print a line of JSON for each text")
    formats.add_argument("--npy", type=Path, metavar="FILE", help="write a float32 array [n_texts, n_embd] of numpy")
    add_loading_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="close with the speed, on standard error")


def _define_perform(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("task", help="summarize, translate, answer, read, choose or last_word")
    add("text", nargs="?", help="the article, sentence, question or passage; - or nothing reads standard input")
    about = "a field of the task, as text or as JSON; may be repeated"
    add("--field", action="append", default=[], metavar="NAME=VALUE", help=about)
    add("--show", action="store_true", help="show the task, its fields and defaults, and do nothing")
    add("--abstain-below", type=float, metavar="P", help="no answer rather than one of a lower confidence")
    add_model_arguments(parser)
    add_prefix_argument(parser)
    add_option_arguments(parser)


def _define_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="what prompts begin with; - reads standard input")
    parser.add_argument("--output", metavar="FILE", required=True, help="where to keep it")
    parser.add_argument("--special-tokens", action="store_true", help="as for generate")
    add_model_arguments(parser)


def _define_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("task", help="lambada, choose, perplexity or wikitext")
    add("file", help="JSON lines of examples, or a text; see help(runtime.evaluate)")
    add("--limit", type=int, metavar="N", help="only the first N lines of the file")
    add_model_arguments(parser)


def _define_serve(parser: argparse.ArgumentParser) -> None:
    from runtime.server_settings import add_setting_arguments

    add_folders_argument(parser)
    add_loading_arguments(parser, several=True)
    parser.add_argument("--verbose", action="store_true", help="a line for every request, on standard error")
    add_setting_arguments(parser)


def _define_build(parser: argparse.ArgumentParser) -> None:
    about = "the checkpoint and the options, as of export/build.py"
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help=about)


def _define_check(parser: argparse.ArgumentParser) -> None:
    add_folder_argument(parser)
    add_model_argument(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="threads of one pass (default: every core)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _define_info(parser: argparse.ArgumentParser) -> None:
    add_folder_argument(parser)
    add_model_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


_COMMANDS = {
    "generate": ("continue a prompt as it is decoded", _define_generate),
    "complete": ("continue several prompts together", _define_complete),
    "infill": ("what may stand between two texts", _define_infill),
    "score": ("how likely a model finds a text", _define_score),
    "surprisal": ("the surprisal of every word or token of texts, in bits", _define_surprisal),
    "classify": ("the labels that a classifier gives texts or their tokens", _define_classify),
    "embed": ("embeddings of texts: the hidden states of the last layer, pooled", _define_embed),
    "perform": ("summarize, translate, answer, read, choose or complete a word", _define_perform),
    "prefix": ("compute what many prompts begin with, once", _define_prefix),
    "evaluate": ("accuracy or perplexity on a file", _define_evaluate),
    "build": ("build a model folder from a checkpoint", _define_build),
    "serve": ("OpenAI's protocol over HTTP, and a page at /", _define_serve),
    "check": ("whether this device runs a model as it should", _define_check),
    "info": ("what a model folder holds, and what this processor is", _define_info),
}
