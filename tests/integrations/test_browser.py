"""examples/browser: the model in a real browser, from a static server alone, writes the same ids."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.folder import layout
from runtime.model.model import Model
from tests.support.browsing import browser as browser
from tests.support.browsing import expect
from tests.support.building import REPOSITORY, run
from tests.support.other_runtimes import N_NEW, NEAR_TIE, PROMPTS, check_same_ids, node

EXAMPLE = REPOSITORY / "examples" / "browser"


@pytest.fixture(scope="module")
def web_folder(demo_int8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in the layout of transformers.js."""
    folder = tmp_path_factory.mktemp("web") / "demo-web"
    shutil.copytree(demo_int8_folder, folder)
    layout.arrange(folder, "int8")
    return folder


@pytest.mark.slow
def test_transformers_js_opens_its_layout_without_options(web_folder: Path, demo_int8: Model) -> None:
    program, here = node()
    done = run(program, "generate.mjs", web_folder, str(N_NEW), *PROMPTS, cwd=here)
    assert done.returncode == 0, done.stderr
    check_same_ids(json.loads(done.stdout), demo_int8, NEAR_TIE["demo_int8"])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(web_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a static server that has nothing but the files."""
    node()
    folder = tmp_path_factory.mktemp("site") / "browser"
    command = [sys.executable, EXAMPLE / "make_site.py", web_folder, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "MB  model/onnx/model_quantized.onnx_data" in done.stdout
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_browser_writes_the_same_ids(browser: Any, site: str, demo_int8: Model) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site)
    expect(page.locator("#status")).to_contain_text("Ready: ", timeout=60_000)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    written = page.evaluate(
        "async ([prompts, n]) => { const { generate } = await import('./app.js'); const written = [];"
        "for (const prompt of prompts) written.push(await generate(prompt, { max_new_tokens: n, do_sample: false }));"
        "return written; }",
        [PROMPTS, N_NEW],
    )
    check_same_ids([one["ids"] for one in written], demo_int8, NEAR_TIE["demo_int8"])
    assert written[0]["text"].strip()
    assert all(one["rate"] > 0 for one in written)
    page.get_by_label("greedy").check()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#status")).to_contain_text("120 tokens, ", timeout=60_000)
    expect(page.locator("#status")).to_contain_text("tokens/s")
    shown = page.locator("#output").text_content()
    assert shown.startswith(PROMPTS[0] + written[0]["text"][:200])
    context.close()
    assert complaints == [], complaints
    assert all(url.startswith((site, "data:")) for url in asked), asked
    large = [url for url in asked if url.endswith((".onnx", ".onnx_data", "tokenizer.json", ".wasm"))]
    assert len(large) == len({*large}) == 4


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    done = run(sys.executable, EXAMPLE / "make_site.py", tmp_path, tmp_path / "site", cwd=tmp_path)
    assert done.returncode == 1
    assert "build it with --layout transformers.js" in done.stderr
    assert not (tmp_path / "site").exists()
