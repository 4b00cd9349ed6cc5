import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would write an id of this machine into the home folder

__version__ = "0.0.1"
