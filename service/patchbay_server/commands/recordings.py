"""Options of what is done to recordings, the same for every command that reads some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from patchbay.models.neuript.steps import Steps

DataOption = Annotated[Path, typer.Option(metavar="DIR", help="Recordings: .edf, .bdf, .npz, in any folders below.")]
WindowOption = Annotated[float, typer.Option(min=0.25, max=120, help="The length of what is read at once.")]
ChannelsOption = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Those to read, by name.", show_default="all")
]
BipolarOption = Annotated[bool, typer.Option(help="Make the paper's 20 bipolar channels.")]
AverageOption = Annotated[bool, typer.Option(help="Reference to the mean of the channels.")]
LineOption = Annotated[float | None, typer.Option(help="The mains: a notch at 50 or 60.")]


def to_steps(
    window_seconds: float,
    channels: str | None,
    bipolar: bool,
    average_reference: bool,
    line_hz: float | None,
    **others: Any,
) -> Steps:
    """Raises InputError, which names what is wrong."""
    from patchbay.models.neuript.montage import PAPER_20
    from patchbay.models.neuript.steps import Steps

    return Steps.of(
        {
            "window_seconds": window_seconds,
            "channels": tuple(channels.split(",")) if channels else None,
            "pairs": PAPER_20 if bipolar else None,
            "reference": "average" if average_reference else "recorded",
            "line_hz": line_hz,
            **others,
        }
    )
