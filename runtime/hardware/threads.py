"""The number of processors that this process may use, which a container or an affinity may limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# More threads only wait for one another: with 256 on two cores a load takes 14 s.
MAX_THREADS = max(64, 4 * (os.cpu_count() or 1))
_CGROUPS = Path("/sys/fs/cgroup")


def usable_threads(cgroups: Path = _CGROUPS) -> int:
    """The number of threads to decode with; 0 lets onnxruntime use all physical cores if nothing limits the process.

    onnxruntime itself counts the cores of the machine, and in a container would start a thread for each of the host's.
    """
    n_all = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_all
    limit = min([allowed, *(max(1, math.ceil(quota)) for quota in _quotas(cgroups))])
    return limit if limit < n_all else 0


def _quotas(cgroups: Path) -> Iterator[float]:
    """The processor time that control groups of Linux allow, in processors: version 2, then version 1."""
    for place in (cgroups, *_own_groups(cgroups)):
        quota, _, period = _read(place / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    quota = _read(cgroups / "cpu" / "cpu.cfs_quota_us")
    period = _read(cgroups / "cpu" / "cpu.cfs_period_us")
    # A quota of -1 means no limit.
    if quota.isdecimal() and period.isdecimal():
        yield int(quota) / int(period)


def _own_groups(cgroups: Path) -> Iterator[Path]:
    """The folders of the process's control group and of the groups that contain it, if they are visible."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        name = line.removeprefix("0::/")
        if name and name != line:
            own = cgroups / name
            yield from (own, *(parent for parent in own.parents if cgroups in parent.parents))


def _read(path: Path) -> str:
    try:
        # The name of a group may be any bytes.
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
