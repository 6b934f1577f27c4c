"""The graph as plain data: one description, which the export stage writes and the runtime checks files against."""
