"""The names of the graph and its weights in a model folder: this project's, or those that transformers.js expects."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from export.json_file import write_json
from runtime._json import read_json
from runtime.graph.data import DATA_FILE
from runtime.model.integrity import CONFIG

GPT2_EDGE = "gpt2-edge"
TRANSFORMERS_JS = "transformers.js"
LAYOUTS = (GPT2_EDGE, TRANSFORMERS_JS)
_GRAPH = "model.onnx"
# transformers.js's name of each precision, and what it adds to the name of the graph
_DTYPES = {"fp32": ("fp32", ""), "int8": ("q8", "_quantized"), "int4": ("q4", "_q4")}


def graph_file(layout: str, precision: str) -> str:
    """Where the graph is in the folder; its weights are beside it, in a file of this name and `_data`.

    >>> graph_file("transformers.js", "int8")
    'onnx/model_quantized.onnx'
    """
    return _GRAPH if layout == GPT2_EDGE else f"onnx/model{_DTYPES[precision][1]}.onnx"


def arrange(folder: Path, precision: str) -> None:
    """Give a folder with this project's names those of transformers.js, as its models on the hub have them.

    `config.json` then says which precision to load and that the weights are in a file of their own, so that
    `from_pretrained` needs no options.
    """
    graph = folder / graph_file(TRANSFORMERS_JS, precision)
    data_name = f"{graph.name}_data"
    graph.parent.mkdir()
    model = onnx.load(folder / _GRAPH, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            _set_location(tensor, data_name)
    graph.write_bytes(model.SerializeToString())
    (folder / _GRAPH).unlink()
    (folder / DATA_FILE).rename(graph.parent / data_name)
    settings = {"dtype": _DTYPES[precision][0], "use_external_data_format": {graph.name: 1}}
    write_json(folder / CONFIG, {**read_json(folder / CONFIG), "transformers.js_config": settings})


def _set_location(tensor: TensorProto, name: str) -> None:
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = name
