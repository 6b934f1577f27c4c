"""The site of docs/ builds without a warning, its links lead somewhere, and it loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.building import REPOSITORY, run

LOADING = {"script", "link", "img"}  # elements that fetch what they name


class Page(HTMLParser):
    """The ids of a page, and what it links to: (element, address)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append((tag, value))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not importlib.util.find_spec("mkdocs"):
        assert "CI" not in os.environ, "mkdocs is missing"
        pytest.skip("mkdocs is missing: `make .venv/dev` installs it")
    folder = tmp_path_factory.mktemp("site")
    done = run(sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_every_page_is_in_the_site(pages: dict[Path, Page]) -> None:
    assert {path.stem for path in pages} == {path.stem for path in REPOSITORY.glob("docs/*.md")}


@pytest.mark.slow
def test_links_lead_somewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for tag, address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert tag not in LOADING, f"{path.name} loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.name}: {address}"


@pytest.mark.slow
def test_the_reference_shows_signatures_parameters_and_errors(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference.html").read_text(encoding="utf-8"))
    load = text[text.index("load(") : text.index("generate(")]
    assert "max_memory" in load
    assert "for the products within a pass" in load
    assert "Raises" in load
    assert "Args:" not in load


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A text.\n\nx: first,\n    and more.\ny: second.\nRaises ValueError.", "- **`x`**: first,"),
        ("A text.\nx: first.\nRaises ValueError.", "\n\nRaises ValueError."),
        ("A text.\n\n>>> 1 + 1\n2\n\nMore.", "```pycon\n>>> 1 + 1\n2\n```\n\nMore."),
        ("A text.\n\n>>> 1 + 1\n2", "```pycon\n>>> 1 + 1\n2\n```"),
        ("See http://a.b: it is there.", "See http://a.b: it is there."),
    ],
)
def test_docstrings_become_markdown(text: str, shown: str) -> None:
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", REPOSITORY / "docs" / "docstrings.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert shown in module.to_markdown(text)
