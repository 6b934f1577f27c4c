"""lm-evaluation-harness finds on our folders what it finds with transformers on the same checkpoint."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from runtime.model.model import Model
from runtime.scoring.perplexity import measure_rolling
from runtime.scoring.wikitext import detokenize, split_pages
from tests.conftest import DEMO, SHARED_DATA, shared_data
from tests.support import oracle
from tests.support.building import REPOSITORY
from tests.support.serving import running

pytestmark = pytest.mark.filterwarnings("ignore")  # of another project
TASKS = ["choices", "stories", "book", *(["lambada"] if (SHARED_DATA / "lambada").is_dir() else [])]
WITHOUT_TORCH = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in ("torch", "transformers") else find(name, *rest)
from runtime.integrations.lm_eval import main
main()
"""
# The client keeps a position free for a token that it asks for, so its windows over a book are others.
SERVED = [name for name in TASKS if name != "book"]
OURS = ["-c", WITHOUT_TORCH, "--model", "gpt2-edge", "--batch_size", "4"]
NO_TORCH = {"USE_TORCH": "0"}  # for lm_eval's `datasets`, which asks the metadata of what is installed
THEIRS = ["-m", "lm_eval", "--model", "hf", "--device", "cpu"]
Report = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def lm_eval() -> None:
    """Skips the tests where lm_eval is missing, but in continuous integration."""
    if "CI" not in os.environ and not find_spec("lm_eval"):
        pytest.skip("lm_eval is not installed; pip install -e '.[eval]'")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return evaluated(tmp_path_factory.mktemp("hf"), {}, *THEIRS, "--model_args", f"pretrained={DEMO},dtype=float32")


@pytest.fixture(scope="module")
def ours(demo_fp32_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return evaluated(tmp_path_factory.mktemp("fp32"), NO_TORCH, *OURS, "--model_args", f"pretrained={demo_fp32_folder}")


@pytest.fixture(scope="module")
def ours_int8(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return evaluated(
        tmp_path_factory.mktemp("int8"), NO_TORCH, *OURS, "--model_args", f"pretrained={demo_int8_folder},threads=1"
    )


@pytest.fixture(scope="module")
def served(demo_fp32: Model, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """lm_eval's own client of OpenAI's completions, which sends ids and asks for echo with logprobs."""
    if "CI" not in os.environ and not find_spec("tenacity"):
        pytest.skip("lm_eval's client wants tenacity; pip install -e '.[dev]'")
    with running(demo_fp32) as server:
        arguments = {
            "model": server.engine.model_id,
            "base_url": f"{server.url}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(DEMO),
            "max_length": str(demo_fp32.config.n_positions),
            "num_concurrent": "4",
        }
        given = ",".join(f"{name}={value}" for name, value in arguments.items())
        start = ["-m", "lm_eval", "--model", "local-completions", "--batch_size", "4", "--model_args", given]
        return evaluated(tmp_path_factory.mktemp("served"), {}, *start, tasks=SERVED)


def evaluated(place: Path, settings: dict[str, str], *start: str, tasks: Sequence[str] = TASKS) -> Report:
    """lm_eval's report: of its command line, on our tasks, with what was answered to each request."""
    names = ",".join(f"gpt2_edge_{name}" for name in tasks)
    options = ["--tasks", names, "--include_path", "tests/harness", "--limit", "40", "--log_samples"]
    environment = {"HF_DATASETS_CACHE": str(place / "data"), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *start, *options, "--output_path", str(place / "out")]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | environment | settings,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (place / "out").rglob("results_*.json")
    report: Report = json.loads(results.read_text(encoding="utf-8"))
    report["answers"] = {name: answers(results.parent, name) for name in tasks}
    return report


def answers(folder: Path, name: str) -> list[Any]:
    (samples,) = folder.glob(f"samples_gpt2_edge_{name}_*.jsonl")
    lines = map(json.loads, samples.read_text(encoding="utf-8").splitlines())
    return [line["resps"] for line in sorted(lines, key=lambda line: int(line["doc_id"]))]


def figures(report: Report, name: str) -> dict[str, float]:
    """Metrics by name."""
    found = report["results"][f"gpt2_edge_{name}"]
    return {key: value for key, value in found.items() if isinstance(value, float) and "stderr" not in key}


def loglikelihoods(report: Report, name: str) -> list[tuple[float, str]]:
    """Of every request: log-probability, whether greedy."""
    return [(float(one[0][0]), one[0][1]) for document in report["answers"][name] for one in document]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_figures_are_those_of_transformers(ours: Report, theirs: Report, name: str) -> None:
    assert figures(ours, name)
    assert figures(ours, name) == pytest.approx(figures(theirs, name), rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"choices", "lambada"} & set(TASKS)))
def test_every_loglikelihood_is_that_of_transformers(ours: Report, theirs: Report, name: str) -> None:
    found, expected = loglikelihoods(ours, name), loglikelihoods(theirs, name)
    assert [one[1] for one in found] == [one[1] for one in expected]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-3)


@pytest.mark.slow
def test_every_text_is_that_of_transformers(ours: Report, theirs: Report) -> None:
    assert ours["answers"]["stories"] == theirs["answers"]["stories"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"choices", "lambada"} & set(TASKS)))
def test_every_loglikelihood_of_the_server_is_that_of_the_runtime(served: Report, ours: Report, name: str) -> None:
    found, expected = loglikelihoods(served, name), loglikelihoods(ours, name)
    assert len(found) > 10
    assert [one[1] for one in found] == [one[1] for one in expected]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-3)
    assert figures(served, name) == pytest.approx(figures(ours, name), rel=2e-5)


@pytest.mark.slow
def test_every_text_of_the_server_is_that_of_the_runtime(served: Report, ours: Report) -> None:
    assert served["answers"]["stories"] == ours["answers"]["stories"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({"book", "choices"}))
def test_int8_is_close(ours_int8: Report, theirs: Report, name: str) -> None:
    print(f"{name}: int8 {figures(ours_int8, name)}, transformers {figures(theirs, name)}")
    assert figures(ours_int8, name) == pytest.approx(figures(theirs, name), rel=0.01, abs=0.1)
    assert ours_int8["config"]["model_folder"]["precision"] == "int8"


@pytest.mark.slow
def test_wikitext_is_rewritten_cut_and_counted_as_by_lm_eval(demo_fp32: Model) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
    from lm_eval.utils import get_rolling_token_windows

    pages = split_pages((shared_data("wikitext2") / "wiki.test.raw").read_text(encoding="utf-8"))
    assert [detokenize(page) for page in pages] == [wikitext_detokenizer({"page": page}) for page in pages]
    ids, logprob = oracle.demo_tokenizer().encode(detokenize(pages[0])), 0.0
    for given, predicted in get_rolling_token_windows(ids, prefix_token=0, max_seq_len=512, context_len=1):
        rows = oracle.logprobs(oracle.demo(), given)[-len(predicted) :]
        logprob += float(rows[range(len(predicted)), predicted].sum())
    rolling = measure_rolling(demo_fp32, pages[:1], detokenize)
    counted = process_results({"page": pages[0]}, (logprob,))
    assert len(ids) > 2 * 512
    assert rolling.token_perplexity == pytest.approx(math.exp(-logprob / len(ids)), rel=5e-5)
    assert {"word_perplexity": rolling.n_words, "byte_perplexity": rolling.n_bytes}.items() <= {
        name: n for name, (_, n) in counted.items()
    }.items()


# the class ---------------------------------------------------------------------------------------------------------


def instances(kind: str, *arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def edge(demo_fp32_folder: Path) -> Any:
    from runtime.integrations.lm_eval import GPT2Edge

    return GPT2Edge(str(demo_fp32_folder), batch_size="2")


@pytest.mark.slow
def test_options_of_a_document_share_the_pass_over_its_context(edge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []
    new_cache = Model.new_cache
    monkeypatch.setattr(Model, "new_cache", lambda *given, **named: caches.append(given) or new_cache(*given, **named))
    pairs = [("The old king", " said"), ("A bird", " flew"), ("The old king", " sang a song"), ("", "The")]
    found = edge.loglikelihood(instances("loglikelihood", *pairs))
    assert len(caches) < len(pairs)
    monkeypatch.undo()
    assert found == [edge.loglikelihood(instances("loglikelihood", pair))[0] for pair in pairs]


@pytest.mark.slow
def test_samples_are_as_the_seed_of_lm_eval_has_them(edge: Any) -> None:
    import numpy as np

    arguments = {"until": ["\n"], "do_sample": True, "max_gen_toks": 12, "top_k": 40}
    requests = instances("generate_until", *[("The old king", arguments)] * 5)
    written = []
    for _ in range(2):
        np.random.seed(1234)
        written.append(edge.generate_until(requests))
    assert written[0] == written[1]
    assert len(set(written[0])) == 5


@pytest.mark.slow
def test_what_is_too_long_loses_its_beginning_and_says_so(edge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    long = "once upon a time " * 300
    short = edge.generate_until(instances("generate_until", (long, {"until": [], "max_gen_toks": 8})))
    edge.loglikelihood(instances("loglikelihood", (long, " there was")))
    assert short[0]
    assert capsys.readouterr().out.count("1 of 1 contexts lost their beginning") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"until": [], "colour": "red"}, "colour"), ({"until": [], "max_gen_toks": 0}, "max_new_tokens is 0")],
)
def test_generation_arguments_are_checked(edge: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        edge.generate_until(instances("generate_until", ("a", arguments)))


@pytest.mark.slow
def test_an_empty_text_rolls_to_nothing(edge: Any) -> None:
    assert edge.loglikelihood_rolling(instances("loglikelihood_rolling", ("",))) == [0.0]


@pytest.mark.slow
def test_there_is_no_chat(edge: Any) -> None:
    with pytest.raises(ValueError, match="not trained to chat"):
        edge.chat_template(True)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["several", "-1", 0, 1.5])
def test_a_batch_size_is_a_number(demo_fp32_folder: Path, given: Any) -> None:
    from runtime.integrations.lm_eval import GPT2Edge

    with pytest.raises((TypeError, ValueError), match="batch_size is"):
        GPT2Edge(demo_fp32_folder, batch_size=given)


@pytest.mark.slow
def test_caches_are_named_by_the_folder(edge: Any) -> None:
    assert "demo-fp32" in edge.tokenizer_name
    assert os.sep not in edge.tokenizer_name


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "runtime.integrations.lm_eval", raising=False)
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'gpt2-edge\[eval\]'"):
        __import__("runtime.integrations.lm_eval")
