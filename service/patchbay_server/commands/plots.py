"""What commands that draw have in common."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from patchbay.errors import InputError


def check_plot(plot: Path) -> None:
    """Before what is drawn is measured, which takes minutes. Raises InputError."""
    if plot.suffix.lower() != ".png":
        raise InputError(f"{plot} does not end in .png, which is what is drawn", param="plot")
    if not plot.parent.is_dir():
        raise InputError(f"there is no folder {plot.parent} to write the plot into", param="plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('--plot needs matplotlib: pip install "patchbay[demo]"', param="plot")
