"""Keep packages from reporting usage to their makers."""

import os
import sys


def forbid_telemetry() -> None:
    """Make `openvino_telemetry` look absent to OpenVINO, which then reports nothing.

    It is optional. With it, importing OpenVINO forks a process that sends usage data, which
    machines in factories must not do, and which breaks in a process whose standard input is used.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's own, on by default
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
