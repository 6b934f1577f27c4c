"""The ONNX graph: written by hand, and optimum's as reference."""
