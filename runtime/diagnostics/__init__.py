"""Whether a model folder computes what it should on this machine, and what it is."""
