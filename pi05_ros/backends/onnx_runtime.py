"""The one place that imports ONNX Runtime, without its telemetry.

Official builds (1.31 on Linux too) send usage events to Microsoft unless ORT_DISABLE_TELEMETRY is
set before the library is loaded. A user who wants them sets it to 0.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

VARIABLE = "ORT_DISABLE_TELEMETRY"


def switch_telemetry_off() -> None:
    """Set the variable for this process and its children, unless the user has set it."""
    os.environ.setdefault(VARIABLE, "1")


def load_runtime() -> Any:
    """Import ONNX Runtime.

    Raises:
        ImportError: it is missing, or does not load.

    """
    switch_telemetry_off()
    runtime = importlib.import_module("onnxruntime")
    if os.environ[VARIABLE] != "0":
        runtime.disable_telemetry_events()  # somebody else may have imported it before
    return runtime
