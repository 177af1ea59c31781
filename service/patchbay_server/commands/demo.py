"""`patchbay demo`: the product's main job on real data, in one run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from patchbay.errors import InputError
from patchbay_server.commands.options import JsonOption
from patchbay_server.commands.quiet import silence_libraries

EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run is kept.", metavar="DIR")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Of training and of the data's split.")] = 0,
    eeg: Annotated[bool, typer.Option("--eeg", help="On recordings of EEG in place of digits.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --eeg: S001R01.edf ... of PhysioNet's motor data, one's runs 1, 2, 3, 6, 7, 10, 11 and 14.",
            show_default="made up",
        ),
    ] = None,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the server up afterwards.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a small model on real digits, compress its fine-tunes, serve them and measure every combination."""
    _require_extra()
    if data is not None and not eeg:
        raise InputError("--data goes with --eeg: the digits are bundled", param="data")
    silence_libraries()
    if eeg:
        from patchbay_server.demo.eeg import run_eeg_demo

        run_eeg_demo(folder, data, seed=seed, as_json=as_json)
        return
    from patchbay_server.demo.run import run_demo

    run_demo(folder, seed=seed, keep_serving=keep_serving, as_json=as_json)


def _require_extra() -> None:
    """Asked first: the plot is drawn after minutes of training."""
    for module, package in EXTRA.items():
        if find_spec(module) is None:
            raise InputError(f"the demo needs {package}: pip install 'patchbay[demo]'")
