"""Weights as small integers: statistics of the model's inputs, rounding, and the nodes of each kernel."""
