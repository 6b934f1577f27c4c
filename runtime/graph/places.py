"""Check where the weights of a graph are stored: in one file beside it, with the expected name."""

from __future__ import annotations

from runtime.errors import ModelFolderError
from runtime.graph.reader import OnnxModel


def check_places(model: OnnxModel, names: set[str]) -> None:
    """Raise ValueError for weights in a file of another name, in several files, or beyond the file's end."""
    path = model.path
    locations = model.locations
    if odd := locations - names:
        raise ModelFolderError(
            f"{path} has its weights in {min(odd)!r}; {' or '.join(sorted(names))} beside it is expected"
        )
    if len(locations) > 1:
        raise ModelFolderError(
            f"{path} has its weights in several files: {', '.join(sorted(locations))}; one is expected"
        )
    for location in locations:
        try:
            size = (path.parent / location).stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{path.parent / location} is missing, which holds the weights of {path}") from None
        for tensor in model.tensors:
            if tensor.place is not None and tensor.place.offset + tensor.place.length > size:
                raise ModelFolderError(
                    f"{path} has {tensor.name!r} up to byte {tensor.place.offset + tensor.place.length} of {location}, "
                    f"which has {size}: one of the two is damaged; copy the model folder again"
                )
