"""onnxruntime's session, opened with our options; it raises an error in a fork, where it would wait for ever."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from runtime._lock import Lock
from runtime.errors import ModelFolderError
from runtime.hardware import huge_pages
from runtime.hardware.threads import usable_threads
from runtime.model import mapped_weights

# This fusion would replace Add and LayerNormalization by a slower kernel.
_SLOWER = {"SkipLayerNormFusion"}
# Sessions are opened one at a time, see `mapped_weights.detach`.
_opening = Lock()


class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
    """A session of this process. In a fork every run raises RuntimeError: the fork lacks the session's threads."""

    def __init__(
        self,
        path: Path,
        threads: int | None,
        prepack: bool,
        data: Sequence[int] = (),
        before_opening: Callable[[], None] = lambda: None,
    ) -> None:
        """Open a graph.

        data: descriptors of the files of its weights. With `prepack`, weights that stay mapped from them are moved into
            the memory of the process if the system allows it; `reads_from_file` says whether not.
        before_opening: called just before onnxruntime takes over, which releases the interpreter to other threads.
        Raises ValueError, naming the file, for a graph that onnxruntime cannot open.
        """
        options = onnxruntime.SessionOptions()
        # Only fatal messages: onnxruntime warns about num_logits_to_keep at every load, and raises errors anyway.
        options.log_severity_level = 4
        options.intra_op_num_threads = usable_threads() if threads is None else threads
        # ONNX whatever the name of the file.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # The arena holds activations alone: what only the load needs is not kept. Without the arena, and with memory
        # patterns, whose buffers grow with each longer pass, the peak of a long prompt is higher.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        options.enable_mem_pattern = False
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        before = huge_pages.anonymous_ranges()
        try:
            with _opening:
                mapped = mapped_weights.find(data)
                before_opening()
                super().__init__(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER)
                self.reads_from_file = not (prepack and mapped_weights.detach(data, mapped))
            self.metadata: dict[str, str] = self.get_modelmeta().custom_metadata_map
            for value in (*self.get_inputs(), *self.get_outputs(), *self.get_overridable_initializers()):
                # Names that are not UTF-8 raise an error when they are first read: read all of them now.
                _ = (value.name, value.type, value.shape)
        # onnxruntime's exceptions share no other base class.
        except Exception as error:
            raise ModelFolderError(
                f"{path} or {path.name}_data is missing, or damaged, or too large: {error}"
            ) from None
        huge_pages.collapse_what_is_new(before)
        self._process = os.getpid()
        _open.add(self)

    def check_process(self) -> None:
        """Raise RuntimeError in a fork of the process that opened the session."""
        if self._process != os.getpid():
            raise RuntimeError(
                f"this process is a fork of {self._process}, which loaded the model, and onnxruntime's threads do not "
                "survive a fork: load the model after it, or start processes by spawn"
            )

    def run_with_iobinding(self, *arguments: Any) -> None:
        """See onnxruntime."""
        self.check_process()
        super().run_with_iobinding(*arguments)

    def run_with_ort_values(self, *arguments: Any) -> Any:
        """See onnxruntime."""
        self.check_process()
        return super().run_with_ort_values(*arguments)


_open: weakref.WeakSet[Session] = weakref.WeakSet()


def _keep_in_fork() -> None:
    """Never free the parent's sessions in a fork: that would wait for ever for threads that the fork lacks."""
    for session in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_fork)
