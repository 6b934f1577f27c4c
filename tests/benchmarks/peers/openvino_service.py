"""OpenVINO GenAI's continuous batching: python openvino_service.py FOLDER THREADS TOKENIZER

It writes `ready`, then reads a line of JSON for each round, {"prompts": [...], "n_new": n}, whose prompts come at the
same time, and writes a line for it: for each prompt [seconds to its first token, number of its tokens].
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from tokenizers import Tokenizer

CACHE_GB = 1  # of keys and values: 8 rows of 160 tokens take a tenth
MAX_TOKENS = 256  # of one step


def main() -> None:
    folder, threads, tokenizer_file = sys.argv[1:]
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = MAX_TOKENS
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(threads)}
    )
    tokenizer = Tokenizer.from_file(tokenizer_file)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in asked["prompts"]]
        print(json.dumps(answer(pipeline, prompts, asked["n_new"])), flush=True)


def answer(pipeline: Any, prompts: list[list[int]], n_new: int) -> list[tuple[float, int]]:
    """All prompts are added at once; each step decodes a token of every row."""
    config = openvino_genai.GenerationConfig(max_new_tokens=n_new, min_new_tokens=n_new, ignore_eos=True)
    start = time.perf_counter()
    handles = [
        pipeline.add_request(index, openvino.Tensor(np.array([ids], np.int64)), config)
        for index, ids in enumerate(prompts)
    ]
    first = [0.0] * len(prompts)
    n_tokens = [0] * len(prompts)
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter() - start
        for index, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    n_tokens[index] += len(output.generated_ids)
                    first[index] = first[index] or now
    return list(zip(first, n_tokens, strict=True))


if __name__ == "__main__":
    main()
