"""What only `make test-long` runs, which sets PATCHBAY_LONG=1, and `make test-ray`, which sets PATCHBAY_RAY=1."""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("PATCHBAY_LONG") == "1"
long = pytest.mark.skipif(not LONG, reason="takes long: make test-long")
ray = pytest.mark.skipif(os.environ.get("PATCHBAY_RAY") != "1", reason="starts a Ray of its own: make test-ray")
