"""Which kernels suit a processor, by what systems say of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from runtime import load
from runtime.hardware import cpu_features as processor
from runtime.hardware.cpu_features import advice, alternative, processor_features, suitable_kernel

HASWELL = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 avx f16c bmi1 avx2 smep bmi2 erms
vmx flags\t: vnmi preemption_timer invvpid
"""
NEHALEM = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i7 CPU 920 @ 2.67GHz
flags\t\t: fpu vme sse sse2 ht nx pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm
"""
PI_4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PI_5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU part\t: 0xd0b
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
LITTLE = PI_4.replace("0xd08", "0xd03")
POWER = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\n"


def pretend(monkeypatch: pytest.MonkeyPatch, machine: str, text: str, system: str = "linux") -> None:
    monkeypatch.setattr("runtime.hardware.cpu_features.sys.platform", system)
    monkeypatch.setattr("runtime.hardware.cpu_features.platform.machine", lambda: machine)
    monkeypatch.setattr("runtime.hardware.cpu_features.Path.read_text", lambda *_given, **_named: text)


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", HASWELL, "block"),
        ("x86_64", NEHALEM, "dense"),
        ("aarch64", PI_4, "dense"),
        ("armv7l", PI_4, "dense"),
        ("aarch64", PI_5, "block"),
        ("aarch64", f"{PI_5}\n{PI_5}", "block"),
        ("aarch64", f"{LITTLE}\n{PI_5}", "dense"),  # a thread may run on either
        ("aarch64", f"{PI_5}\n{LITTLE}", "dense"),
        ("ppc64le", POWER, None),
        ("x86_64", "", None),
    ],
    ids=["Haswell", "Nehalem", "Pi 4", "Pi 4, 32 bits", "Pi 5", "two alike", "LITTLE.big", "big.LITTLE", "POWER", "-"],
)
def test_linux_tells_by_cpuinfo(monkeypatch: pytest.MonkeyPatch, machine: str, text: str, expected: str | None) -> None:
    pretend(monkeypatch, machine, text)
    assert suitable_kernel() == expected


def test_the_features_of_unlike_cores_are_what_all_have() -> None:
    assert processor._from_cpuinfo(f"{LITTLE}\n{PI_5}") == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    assert processor._from_cpuinfo(HASWELL) == set(HASWELL.splitlines()[2].split(":")[1].split())


@pytest.mark.parametrize(
    ("machine", "answers", "expected"),
    [
        ("arm64", {"hw.optional.arm.FEAT_DotProd": True}, "block"),
        ("arm64", {}, "dense"),
        ("x86_64", {"hw.optional.avx2_0": True}, "block"),
        ("x86_64", {}, "dense"),
    ],
)
def test_macos_tells_by_sysctl(
    monkeypatch: pytest.MonkeyPatch, machine: str, answers: dict[str, bool], expected: str
) -> None:
    pretend(monkeypatch, machine, "", "darwin")
    monkeypatch.setattr(processor, "_sysctl", lambda name: answers.get(name, False))
    assert suitable_kernel() == expected


@pytest.mark.parametrize(
    ("machine", "present", "expected"),
    [("AMD64", {40}, "block"), ("AMD64", set(), "dense"), ("ARM64", {43}, "block"), ("ARM64", {40}, "dense")],
)
def test_windows_tells_by_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, machine: str, present: set[int], expected: str
) -> None:
    class Kernel32:
        @staticmethod
        def IsProcessorFeaturePresent(number: int) -> bool:  # noqa: N802
            return number in present

    pretend(monkeypatch, machine, "", "win32")
    monkeypatch.setattr(
        "runtime.hardware.cpu_features.ctypes.windll", type("Dlls", (), {"kernel32": Kernel32}), raising=False
    )
    assert suitable_kernel() == expected


@pytest.mark.parametrize(("system", "machine"), [("freebsd14", "amd64"), ("linux", "riscv64"), ("win32", "mips")])
def test_of_other_systems_nothing_is_known(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    pretend(monkeypatch, machine, "", system)
    assert processor_features() is None
    assert suitable_kernel() is None


def test_a_family_of_which_nothing_is_known_but_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "loongarch64", "Features\t: cpucfg lam ual fpu lsx lasx\n")
    assert suitable_kernel() is None


def test_cpuinfo_that_cannot_be_read_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_given: Any, **_named: Any) -> str:
        raise PermissionError("/proc is not mounted")

    pretend(monkeypatch, "x86_64", "")
    monkeypatch.setattr("runtime.hardware.cpu_features.Path.read_text", refuse)
    assert suitable_kernel() is None


@pytest.mark.parametrize("kernel", ["block", "mixed", "dense", None])
@pytest.mark.parametrize("suitable", ["block", "dense", None])
def test_advice_is_for_blocks_where_they_are_slow(kernel: str | None, suitable: str | None) -> None:
    said = advice(kernel, suitable)
    assert (said is not None) == (kernel in ("block", "mixed") and suitable == "dense")
    assert said is None or "--kernel dense" in said


@pytest.mark.parametrize(("suitable", "warned"), [("dense", True), ("block", False), (None, False)])
def test_loading_an_unsuited_build_warns(
    demo_block_folder: Path, monkeypatch: pytest.MonkeyPatch, suitable: str | None, warned: bool
) -> None:
    monkeypatch.setattr("runtime.model.model.suitable_kernel", lambda: suitable)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(demo_block_folder).close()
    assert ["--kernel dense" in str(warning.message) for warning in caught] == [True] * warned


def test_fp32_suits_every_processor(demo_fp32_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.model.model.suitable_kernel", lambda: "dense")
    load(demo_fp32_folder).close()  # warnings are errors


@pytest.mark.parametrize(
    ("kernel", "features", "says"),
    [
        ("dense", {"avx2", "avx512_vnni"}, True),
        ("dense", {"avx2"}, False),
        ("dense", None, False),
        ("block", {"avx512_vnni"}, False),
        (None, {"avx512_vnni"}, False),
    ],
)
def test_info_tells_of_blocks_where_they_decode_faster(
    kernel: str | None, features: set[str] | None, says: bool
) -> None:
    assert ("--kernel block" in (alternative(kernel, features) or "")) == says
