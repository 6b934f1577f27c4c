"""How many processors this process may use: less than the machine has, in a container or with an affinity."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MAX_THREADS = max(64, 4 * (os.cpu_count() or 1))  # more spin in each other's way: 256 on two cores load in 14 s
_CGROUPS = Path("/sys/fs/cgroup")


def usable_threads(cgroups: Path = _CGROUPS) -> int:
    """Threads to decode with; 0, where nothing limits the process, leaves onnxruntime to count the physical cores.

    Onnxruntime itself looks at the machine only, and would start a thread for every core of the host of a container.
    """
    n_all = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_all
    limit = min([allowed, *(max(1, math.ceil(quota)) for quota in _quotas(cgroups))])
    return limit if limit < n_all else 0


def _quotas(cgroups: Path) -> Iterator[float]:
    """Processors' worth of time that control groups allow: Linux, version 2, then 1."""
    for place in (cgroups, *_own_groups(cgroups)):
        quota, _, period = _read(place / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    quota, period = (_read(cgroups / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota.isdecimal() and period.isdecimal():  # -1 is no quota
        yield int(quota) / int(period)


def _own_groups(cgroups: Path) -> Iterator[Path]:
    """The process's group and those that it is in, where it sees them."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        name = line.removeprefix("0::/")
        if name and name != line:
            own = cgroups / name
            yield from (own, *(parent for parent in own.parents if cgroups in parent.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()  # a group's name is any bytes
    except OSError:
        return ""
