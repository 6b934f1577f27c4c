"""Tables of the benchmarks in the documents, between markers: a run replaces them.

<!-- begin growth -->
| ... |
<!-- end growth -->
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
BENCHMARKS = REPOSITORY / "docs" / "benchmarks.md"
SMALL_DEVICES = REPOSITORY / "docs" / "small-devices.md"


def replace(path: Path, name: str, text: str) -> None:
    """Put a text between the markers of a name. Raises ValueError unless the document has them exactly once."""
    document = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    found = pattern.findall(document)
    if len(found) != 1:
        raise ValueError(f"{path.name} has {len(found)} parts between <!-- begin {name} --> and <!-- end {name} -->")
    changed = pattern.sub(lambda match: f"{match[1]}{text.strip()}\n{match[2]}", document)
    path.write_text(changed, encoding="utf-8")
