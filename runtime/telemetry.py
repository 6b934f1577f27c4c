"""onnxruntime's telemetry, switched off: the runtime never connects out. Imported before anything else.

From version 1.26 or so on, onnxruntime's wheels send events to Microsoft, and keep an id of the device under the
user's cache, from the moment of their import, unless this variable says otherwise by then.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

onnxruntime.disable_telemetry_events()  # for a process that has imported onnxruntime before
