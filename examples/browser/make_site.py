#!/usr/bin/env python3
"""Put a model, transformers.js and onnxruntime's WebAssembly in one folder that any static server can serve.

python examples/browser/make_site.py models/demo-web build/browser
python -m http.server --directory build/browser
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The versions that the tests use are locked there.
NODE = HERE.parents[1] / "tests" / "node"
PAGE = ("index.html", "style.css", "app.js", "worker.js")
TRANSFORMERS = "@huggingface/transformers/dist/transformers.web.min.js"
# The build of onnxruntime-web for processors alone: half as large as the one with WebGPU.
RUNTIME = (
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
)
# What the page does not read.
LEFT_OUT = shutil.ignore_patterns("README.md", "SHA256SUMS", "quality.json")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder that was built with --layout transformers.js")
    parser.add_argument("site", type=Path, help="a new folder for the site")
    given = parser.parse_args()
    if not (given.model / "onnx").is_dir():
        sys.exit(f"error: {given.model} has no folder onnx: build it with --layout transformers.js")
    if given.site.exists():
        sys.exit(f"error: {given.site} is there already; name a new folder, or remove it")
    packages = install()
    shutil.copytree(given.model, given.site / "model", ignore=LEFT_OUT)
    for name in PAGE:
        shutil.copyfile(HERE / name, given.site / name)
    copy_libraries(packages, given.site / "lib")
    print_sizes(given.site)


def install() -> Path:
    """The folder of the npm packages, installed if they are missing."""
    packages = NODE / "node_modules"
    if not (packages / TRANSFORMERS).is_file():
        subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=NODE, check=True)
    return packages


def copy_libraries(packages: Path, target: Path) -> None:
    """transformers.js and onnxruntime, which it imports by the names of packages: a worker has no map of these."""
    target.mkdir()
    for name in RUNTIME:
        shutil.copyfile(packages / name, target / Path(name).name)
    script = (packages / TRANSFORMERS).read_text(encoding="utf-8")
    for package in ("onnxruntime-web/webgpu", "onnxruntime-common"):
        imported = f'from"{package}"'
        if imported not in script:
            sys.exit(f"error: {TRANSFORMERS} does not import {package}: this program is for another version of it")
        script = script.replace(imported, f'from"./{Path(RUNTIME[0]).name}"')
    (target / Path(TRANSFORMERS).name).write_text(script, encoding="utf-8", newline="\n")


def print_sizes(site: Path) -> None:
    """Print the large files, and what all files are together: the download of a first visit."""
    files = sorted((path for path in site.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    for path in files:
        if path.stat().st_size > 100_000:
            print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(site).as_posix()}")
    print(f"{sum(path.stat().st_size for path in files) / 1e6:6.2f} MB  in all")


if __name__ == "__main__":
    main()
