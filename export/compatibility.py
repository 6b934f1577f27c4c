"""Whether what is installed goes together: other extras may have brought other versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

CURE = "pip install -e '.[{extra}]' in the clone installs what goes together (with eval: '.[{extra},eval]' at once)"
_REFERENCE = ("transformers", "optimum-onnx", "optimum")  # what exports the reference


def check_hub() -> None:
    """Raise ImportError for a huggingface_hub that raises errors of another kind than the build handles."""
    found = version("huggingface_hub")
    if found.split(".")[0] != "0":
        told = f"downloads need huggingface_hub 0.x, and {found} is installed"
        raise ImportError(f"{told}: {CURE.format(extra='export-light')}, or give a checkpoint folder")


def check_reference() -> None:
    """Raise ImportError, naming the first, for a requirement of optimum's exporter that is not met."""
    from packaging.requirements import Requirement  # transformers needs it, too

    for name in _REFERENCE:
        for line in _requirements(name):
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            found = _installed(need.name)
            if found is None or not need.specifier.contains(found, prereleases=True):
                told = f"{name} {version(name)} needs {need.name}{need.specifier}, and {found or 'none'} is installed"
                raise ImportError(f"{told}: {CURE.format(extra='export')}, or build with --no-reference")


def _requirements(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
