"""Other tools' interfaces: lm-evaluation-harness, Dask."""
