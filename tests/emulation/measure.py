"""What `check` finds in a model folder on the processor that runs this, as JSON; needs the runtime alone."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy._core._multiarray_umath import __cpu_features__ as instructions  # asks the processor itself

from runtime.diagnostics import check
from runtime.hardware.cpu_features import suitable_kernel
from runtime.model.integrity import GOLDEN
from runtime.model.model import Model
from runtime.model.prefill import prefill

THREADS = 1
N_STEPS = 9
DECISIVE = ("AVX2", "AVX512F", "AVX512VNNI", "ASIMDDP")  # instructions of the int8 kernels


def main() -> None:
    """Measure the folder named on the command line."""
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    print(json.dumps(checked(folder) | {"step_ms": 1000 * decode_step(folder)}))


def checked(folder: Path) -> dict[str, Any]:
    """`check_folder`, with its warnings, the log-probabilities, and how many ids were the likeliest."""
    logprobs: list[float] = []
    likeliest: list[bool] = []

    def observed(model: Model, prompt_ids: list[int], ids: list[int]) -> Any:
        rows = check_logprobs(model, prompt_ids, ids)
        logprobs.extend(rows[np.arange(len(ids)), ids].tolist())
        likeliest.extend((rows.argmax(-1) == ids).tolist())
        return rows

    check_logprobs = check.forced_logprobs
    with mock.patch.object(check, "forced_logprobs", observed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = check.check_folder(folder, THREADS)
    return dataclasses.asdict(found) | {
        "passed": found.passed,
        "n_likeliest": sum(likeliest),
        "logprobs": logprobs,
        "warnings": [str(warning.message) for warning in caught],
        "suitable_kernel": suitable_kernel(),
        "instructions": [name for name in DECISIVE if instructions[name]],
    }


def decode_step(folder: Path) -> float:
    """Seconds of one step after the first recorded prompt, the median of several."""
    record = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))["records"][0]
    seconds = []
    with Model(folder, threads=THREADS) as model:
        cache = model.new_cache(len(record["prompt_ids"]) + N_STEPS)
        prefill(cache, record["prompt_ids"])
        for id_ in record["ids"][:N_STEPS]:
            start = time.perf_counter()
            cache.step([id_])
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
