"""optimum's export of the demo, as it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.graph.architecture import Architecture, read_architecture
from runtime.graph.reader import OnnxModel, read_model


@pytest.fixture(scope="module")
def model(demo_reference_folder: Path) -> OnnxModel:
    return read_model(demo_reference_folder / "model.onnx")


@pytest.fixture(scope="module")
def architecture(demo_reference_folder: Path) -> Architecture:
    return read_architecture(demo_reference_folder)
