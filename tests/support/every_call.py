"""Every function of the runtime called once, in a process of its own: `python every_call.py FOLDER PROMPT`.

Prints JSON: a text, the modules that are loaded then, and what Python was asked for that it should not have been.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

forbidden: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Keep events of networks and pickles."""
    if event.startswith(("socket.", "urllib.", "pickle.")) and event != "socket.gethostname":
        forbidden.append(event)


if __name__ == "__main__":
    sys.addaudithook(watch)
    import runtime
    from runtime.diagnostics import check, info

    folder, prompt = sys.argv[1:]
    text = runtime.generate(prompt, model=folder, max_new_tokens=8)
    model = runtime.load(folder, verify="full")
    runtime.estimate(folder)
    "".join(runtime.stream(prompt, model=model, max_new_tokens=2, temperature=1.0, seed=1))
    list(runtime.stream_many([prompt], model=model, max_new_tokens=2, lookup=2))
    runtime.complete([prompt], model=model, num_beams=2, max_new_tokens=2)
    runtime.infill(prompt, " end", model=model, best_of=2, max_new_tokens=2)
    runtime.score(" a", context=prompt, model=model)
    runtime.score_text(prompt, model=model)
    runtime.perform("last_word", prompt, model=model)
    kept = runtime.prefix(prompt, model=model)
    kept.save("kept.prefix")
    runtime.load_prefix("kept.prefix", model=model)
    Path("text").write_text(prompt, encoding="utf-8")
    runtime.evaluate("perplexity", "text", model=model)
    assert check.check_folder(Path(folder), None).passed
    info.describe(Path(folder))
    time.sleep(1)  # so that what works in the background shows itself
    modules = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"text": text, "modules": modules, "forbidden": forbidden}))
