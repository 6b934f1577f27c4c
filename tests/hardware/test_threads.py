"""How many threads are used where a process may not use every core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.hardware.threads import usable_threads

QUOTA, PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 0),
        ({"cpu.max": "nonsense"}, 0),
        ({QUOTA: "300000", PERIOD: "100000"}, 3),
        ({QUOTA: "-1", PERIOD: "100000"}, 0),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert usable_threads(tmp_path) == expected


@pytest.mark.usefixtures("eight_cores")
def test_the_tightest_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("400000 100000", encoding="utf-8")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert usable_threads(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS and Windows
    assert usable_threads(tmp_path) == 4
