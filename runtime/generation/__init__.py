"""Decoding: rows step together in batches, each as if it were alone."""
