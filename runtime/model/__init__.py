"""Open a model folder: check its files, open its graph in a session, hold keys and values in a cache."""

from runtime.model.model import Model

__all__ = ["Model"]
