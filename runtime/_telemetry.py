"""onnxruntime's telemetry, switched off: the runtime never connects out. Imported before anything else.

From version 1.26 or so on, onnxruntime's wheels send events to Microsoft, and keep an id of the device under the
user's cache, from the moment of their import, unless this variable says otherwise by then.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# imported before this package, onnxruntime has read the variable already
if "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()
