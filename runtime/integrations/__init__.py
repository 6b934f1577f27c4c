"""Interfaces of other tools: lm-evaluation-harness, Dask."""
