"""A checkpoint as it lies in the world: found, fetched, read, described."""
