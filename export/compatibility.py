"""Check that the installed packages fit together: other extras may have installed other versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

CURE = "pip install -e '.[{extra}]' in the clone installs what goes together (with eval: '.[{extra},eval]' at once)"
# The packages that export the reference.
_REFERENCE = ("transformers", "optimum-onnx", "optimum")


def check_hub() -> None:
    """Raise ImportError unless huggingface_hub is 0.x: later versions raise errors that the build does not handle."""
    installed = version("huggingface_hub")
    if installed.split(".")[0] != "0":
        problem = f"downloads need huggingface_hub 0.x, and {installed} is installed"
        raise ImportError(f"{problem}: {CURE.format(extra='export-light')}, or give a checkpoint folder")


def check_reference() -> None:
    """Raise ImportError, naming the first, for a requirement of optimum's exporter that is not met."""
    # Imported here: the package comes with transformers, which a light environment does not have.
    from packaging.requirements import Requirement

    for name in _REFERENCE:
        for line in _requirements(name):
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            installed = _installed(need.name)
            if installed is None or not need.specifier.contains(installed, prereleases=True):
                problem = (
                    f"{name} {version(name)} needs {need.name}{need.specifier}, and {installed or 'none'} is installed"
                )
                raise ImportError(f"{problem}: {CURE.format(extra='export')}, or build with --no-reference")


def _requirements(name: str) -> list[str]:
    """The requirements of an installed package; empty if it is not installed."""
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
