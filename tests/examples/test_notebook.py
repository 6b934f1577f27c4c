"""The notebook runs from its first cell to its last, and finds what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.building import REPOSITORY

PATH = REPOSITORY / "examples" / "quantization.ipynb"


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each cell of code prints."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(PATH, as_version=4)
    resources = {"metadata": {"path": str(PATH.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four builds
@pytest.mark.filterwarnings("ignore")  # of other projects
def test_the_notebook_finds_what_it_says(printed: list[str]) -> None:
    (table,) = (text for text in printed if "mean KL" in text)
    kl = {row[:20].strip(): float(row.split()[-2]) for row in table.splitlines()[1:]}
    assert kl["fp32"] <= kl["int8, blocks of 64"] <= kl["int8, dense"] < kl["int4"]
    (parting,) = (text for text in printed if "are those of fp32" in text)
    assert re.search(r"^fp32 +the first (\d+) of \1 ", parting, re.MULTILINE)


def test_the_notebook_is_kept_with_what_it_printed() -> None:
    """Readers see it without running it; no output is an error."""
    text = PATH.read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text
    assert "mean KL" in text.split('"outputs"', 1)[1]
    assert "/tmp" not in text
    assert "/home" not in text
