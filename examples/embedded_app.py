"""One model inside an application with threads: python examples/embedded_app.py [MODEL FOLDER].

A model is loaded once and shared by all threads. Each request has a time limit, and the user may stop it. PyInstaller
makes one file of it, with the model inside: docs/deploying.md.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import runtime

# Where PyInstaller's --add-data models/demo-int8:model puts it.
BUNDLED = Path(__file__).with_name("model")


class Writer:
    """What the rest of an application needs to know of the model."""

    def __init__(self, folder: str | Path, max_memory: int = 2**30) -> None:
        # Two threads within a pass: the workers below keep the other cores busy.
        # A model or a batch that would need more than max_memory raises MemoryError instead of swapping.
        self._model = runtime.load(folder, threads=2, max_memory=max_memory)
        self._stopping = threading.Event()
        self._workers = ThreadPoolExecutor(max_workers=3)

    def ask(self, prompt: str) -> str:
        """Continue a prompt for at most five seconds, in the calling thread."""
        (completion,) = runtime.complete(
            prompt,
            model=self._model,
            max_new_tokens=40,
            temperature=0.8,
            top_p=0.9,
            seed=7,
            overflow="truncate_left",  # of a long prompt the end counts
            deadline=5.0,
            cancel=self._stopping.is_set,  # asked before every pass
        )
        return f"{completion.text!r} ({completion.finish_reason})"

    def ask_all(self, prompts: list[str]) -> list[str]:
        """Several at a time. `runtime.complete(prompts)` in one thread would decode them in shared passes instead."""
        return list(self._workers.map(self.ask, prompts))

    def close(self) -> None:
        """Stop what is under way and free the model."""
        self._stopping.set()
        self._workers.shutdown()
        self._model.close()


def default_folder() -> Path:
    """The model inside the application, else the one that `make demo` builds."""
    return BUNDLED if BUNDLED.is_dir() else Path("models/demo-int8")


if __name__ == "__main__":
    writer = Writer(sys.argv[1] if len(sys.argv) > 1 else default_folder())
    try:
        for answer in writer.ask_all(["The fox said", "The owl said", "The hen said"]):
            print(answer)
    finally:
        writer.close()
