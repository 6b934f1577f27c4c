"""Find out which int8 kernels suit this processor, from the features that the system reports."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from pathlib import Path
from typing import Literal

Kernel = Literal["block", "dense"]
# onnxruntime's block kernels need one of these. Without them it dequantizes the weights at every call, which takes 7 to
# 11 times as long.
_NEEDED = {"x86": ("avx2", "avx512f"), "arm": ("asimddp",)}
# PF_AVX2_INSTRUCTIONS_AVAILABLE and PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE.
_WINDOWS_FEATURES = {"avx2": 40, "asimddp": 43}
_SYSCTL = {"avx2": "hw.optional.avx2_0", "asimddp": "hw.optional.arm.FEAT_DotProd"}


def suitable_kernel() -> Kernel | None:
    """The kernel to build models with for this processor; None if its features are not known."""
    features = processor_features()
    needed = _NEEDED.get(_family())
    if features is None or needed is None:
        return None
    return "block" if features & set(needed) else "dense"


def advice(kernel: str | None, suitable: str | None) -> str | None:
    """A warning that another build suits the processor better; None if this one does, or if nothing is known.

    kernel: `block`, `dense`, `mixed` (dense with some products in blocks) or None, from the graph's metadata.
    """
    if kernel in ("block", "mixed") and suitable == "dense":
        return (
            "this processor has no instructions for int8 in blocks; products in blocks take 7 to 11 times as long: "
            "build the model with --kernel dense"
        )
    return None


def alternative(kernel: str | None, features: set[str] | None) -> str | None:
    """The advantages and drawbacks of another build on this processor; None if none are known."""
    if kernel == "dense" and "avx512_vnni" in (features or ()):
        return "this build suits this processor; --kernel block decodes faster on it, and takes longer to prefill"
    return None


def processor_features() -> set[str] | None:
    """The features of the processor that matter for kernels, by Linux's names; None if they are not known."""
    try:
        if sys.platform == "linux":
            return _from_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
        known = [feature for feature in _NEEDED[_family()] if feature in _SYSCTL]
        if sys.platform == "darwin":
            return {feature for feature in known if _sysctl(_SYSCTL[feature])}
        if sys.platform == "win32":
            present = ctypes.windll.kernel32.IsProcessorFeaturePresent
            return {feature for feature in known if present(_WINDOWS_FEATURES[feature])}
    except (OSError, KeyError):
        pass
    return None


def _from_cpuinfo(text: str) -> set[str] | None:
    """The features in the flags line (x86) or Features line (arm) of /proc/cpuinfo that all cores have."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set.intersection(*(set(line.split()) for line in lines)) if lines else None


def _family() -> str:
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i386", "i686"):
        return "x86"
    return "arm" if machine.startswith(("arm", "aarch64")) else machine


def _sysctl(name: str) -> bool:
    # Imported here, since only macOS needs it and its import is slow.
    import subprocess

    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"sysctl does not answer: {error}") from None
    return done.stdout.strip() == "1"
