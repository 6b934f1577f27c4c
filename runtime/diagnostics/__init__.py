"""Check that a model folder computes on this machine what it should, and describe it."""
