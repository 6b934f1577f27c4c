"""A model folder, opened: its files checked, its graph in a session, its key-value cache."""

from runtime.model.model import Model

__all__ = ["Model"]
