"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch

import patchbay
from benchmarks.results import Line


def machine(workers: int) -> Line:
    """A line for a results file; `workers` processes of one thread each."""
    return {
        "kind": "machine",
        "started": time.strftime("%Y-%m-%d %H:%M"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "workers": workers,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "patchbay": patchbay.__version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
