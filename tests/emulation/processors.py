"""Processors to run a model on: this machine's own, and others by emulation.

The emulator knows no AVX-512, which a machine that has it adds as the native one. As arm64's `-cpu max` it computes the
dense int8 product wrongly: that one is left out.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACE = REPOSITORY / "build" / "emulation"
_NEHALEM = "fpu sse sse2 ht pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
_CORTEX_A72 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_CPUINFO = {
    "x86_64": "processor\t: 0\nflags\t\t: {}\n\n",
    # onnxruntime crashes where there is no part
    "aarch64": "processor\t: 0\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
    "CPU part\t: {}\nCPU revision\t: 3\n\n",
}


@dataclasses.dataclass(frozen=True)
class Processor:
    """One to run on."""

    name: str  # the emulator's
    machine: str  # as `uname -m` has it
    about: str
    features: str  # what Linux's /proc/cpuinfo would list
    part: str = ""  # its number there, on arm64


NATIVE = Processor("native", platform.machine(), "", "")  # what it can do is asked
EMULATED = (
    Processor("Haswell", "x86_64", "x86-64, AVX2", f"{_NEHALEM} fma movbe avx f16c bmi1 avx2 bmi2"),
    Processor("IvyBridge", "x86_64", "x86-64, AVX only", f"{_NEHALEM} avx f16c"),
    Processor("Nehalem", "x86_64", "x86-64, SSE only", _NEHALEM),
    Processor(
        "neoverse-n1",
        "aarch64",
        "arm64, dot product",
        f"{_CORTEX_A72} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp",
        "0xd0c",
    ),
    Processor(
        "cortex-a76",
        "aarch64",
        "arm64, dot product, Raspberry Pi 5",
        f"{_CORTEX_A72} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs",
        "0xd0b",
    ),
    Processor("cortex-a72", "aarch64", "arm64, no dot product, Raspberry Pi 4", _CORTEX_A72, "0xd08"),
)
PROCESSORS = {processor.name: processor for processor in (NATIVE, *EMULATED)}


def python_on(processor: Processor, emulator: Sequence[str] = ()) -> list[str]:
    """The command that runs Python on a processor; on arm64, that of `arm64.make_root`.

    emulator: another than QEMU's static one, with its options. Raises FileNotFoundError for a missing emulator.
    """
    if processor is NATIVE:
        return [sys.executable]
    python = PLACE / "root" / "usr" / "bin" / "python3.11" if processor.machine == "aarch64" else sys.executable
    command = emulator or [find_emulator(processor.machine)]
    return [*command, "-cpu", processor.name, "-L", str(_view(processor)), str(python)]


def find_emulator(machine: str) -> str:
    """Path of QEMU's user-mode emulator. Raises FileNotFoundError where there is none that runs this Python."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise FileNotFoundError(
            f"other processors are emulated on Linux on x86-64, not {sys.platform} on {NATIVE.machine}"
        )
    found = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if found is None:
        raise FileNotFoundError(f"qemu-{machine}-static is not installed: sudo apt-get install qemu-user-static")
    return found


def _view(processor: Processor) -> Path:
    """A folder whose files hide the machine's own from an emulated program: /proc/cpuinfo, arm64's libraries."""
    view = PLACE / "views" / processor.name
    cpuinfo = view / "proc" / "cpuinfo"
    cpuinfo.parent.mkdir(parents=True, exist_ok=True)
    cpuinfo.write_text(_CPUINFO[processor.machine].format(processor.features, processor.part), encoding="utf-8")
    if processor.machine == "aarch64":
        for name in ("lib", "usr"):
            if not (view / name).is_symlink():
                (view / name).symlink_to(Path("..", "..", "root", name))
    return view


def environment(processor: Processor) -> dict[str, str]:
    """Variables for `python_on`: on arm64, where the libraries are."""
    if processor.machine == NATIVE.machine:
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": str(PLACE / "root" / "wheels")}
