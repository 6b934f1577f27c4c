"""Find the model of a call. Models that are named by their path are loaded once in a process, and kept."""

from __future__ import annotations

import os
from pathlib import Path

from runtime._lock import Lock
from runtime.errors import NoModelError
from runtime.model.installed_demo import DISTRIBUTION, find_installed_demo
from runtime.model.model import Model
from runtime.model.recovery import recover, recover_all

ENVIRONMENT = "GPT2_EDGE_MODEL"
ModelOrPath = Model | str | os.PathLike[str] | None
_loaded: dict[Path, Model] = {}
_lock = Lock()


def _forget() -> None:
    """Drop all models in a fork: the sessions of the parent process do not run there."""
    _loaded.clear()


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def resolve(model: ModelOrPath) -> Model:
    """Return a Model as it is, and for a path or None (see `find`) the loaded model, which is kept for later calls.

    Raises ValueError for a Model that was closed, TypeError for another value, and the errors of `runtime.load`.
    """
    if isinstance(model, Model):
        if model.is_closed:
            raise ValueError(f"{model} was closed; load it again")
        return model
    folder = (find() if model is None else check_path(model)).resolve()
    with _lock:
        kept = _loaded.get(folder)
        if kept is None or kept.is_closed:
            kept = Model(folder)
            _loaded[folder] = kept
        return kept


def check_path(path: object) -> Path:
    """The value as a Path. Raises TypeError for a value that is not a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"model is {path!r}; a Model, a path or None is expected")
    return Path(path)


def find() -> Path:
    """The folder in $GPT2_EDGE_MODEL, else the only built model under ./models, else the installed demo.

    Raises NoModelError when there is none, ValueError when several are built.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        recover(Path(named))
        if not Path(named).is_dir():
            raise NoModelError(f"no model folder at {named}, which {ENVIRONMENT} names")
        return Path(named)
    recover_all(Path("models"))
    built = sorted(path.parent for path in Path("models").glob("*/model.onnx"))
    if len(built) == 1:
        return built[0]
    how = f"name one: model='FOLDER', --model FOLDER, or set {ENVIRONMENT}"
    if built:
        raise ValueError(f"several models are built: {', '.join(map(str, built))}; {how}")
    demo = find_installed_demo()
    if demo is not None:
        return demo
    raise NoModelError(
        f"no model is built under {Path('models').resolve()}; install a small one (pip install {DISTRIBUTION}), "
        f"build one (gpt2-edge build), or {how}"
    )
