"""Quantization: calibration and equalization of every product, and rounding of its weights for its kernel."""
