"""The demo model of the distribution gpt2-edge-demo: it answers where no model is named and none is built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runtime._lock import Lock
from runtime.errors import NoModelError

DISTRIBUTION = "gpt2-edge-demo"
_FOLDER = "gpt2_edge_demo/demo-int8"
_said: set[str] = set()
_lock = Lock()


def find_installed_demo() -> Path | None:
    """The model folder of gpt2-edge-demo, None where it is not installed. Says once on standard error that it answers.

    Only what is installed counts, in the site-packages of this Python: a folder of that name in the working directory
    or beside a script is somebody else's. Raises NoModelError where the distribution lacks its model.

    >>> find_installed_demo()  # doctest: +SKIP
    PosixPath('/usr/lib/python3/dist-packages/gpt2_edge_demo/demo-int8')
    """
    # Only where no model is named: it takes some ten milliseconds.
    from importlib.metadata import distributions

    for found in distributions(name=DISTRIBUTION, path=_site_packages()):
        folder = Path(str(found.locate_file(_FOLDER)))
        if not (folder / "model.onnx").is_file():
            raise NoModelError(
                f"{DISTRIBUTION} is installed without its model {folder}: "
                f"pip install --force-reinstall --no-deps {DISTRIBUTION}"
            )
        _say_once(
            f"no model is named, so the demo answers: {DISTRIBUTION} {found.version}, a small model of children's "
            "stories (name another: --model FOLDER, model='FOLDER' or GPT2_EDGE_MODEL)"
        )
        return folder
    return None


def _site_packages() -> list[str]:
    """The folders that pip installs into, as far as this process imports from them."""
    import site

    folders = [*site.getsitepackages(), site.getusersitepackages()]
    installed = {os.path.realpath(folder) for folder in folders}
    return [entry for entry in sys.path if entry and os.path.realpath(entry) in installed]


def _say_once(text: str) -> None:
    with _lock:
        if text in _said or sys.stderr is None:
            return
        _said.add(text)
    print(f"gpt2-edge: {text}", file=sys.stderr)
