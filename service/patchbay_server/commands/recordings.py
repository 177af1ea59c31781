"""Options of what is done to recordings, the same for every command that reads some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchbay_server.commands.output import open_console, printable

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


NAMED = 5  # warnings, and recordings that were left out, where nobody asked for JSON


@dataclass(slots=True)
class LeftOut:
    """Recordings of which nothing is read, and why: silence would look as if all had been."""

    found: dict[str, str] = field(default_factory=dict)

    def __call__(self, path: Path, why: str) -> None:
        self.found[str(path)] = why

    def tell(self) -> None:
        """On stderr, whatever stdout is for."""
        console = open_console(stderr=True)
        for path, why in list(self.found.items())[:NAMED]:
            console.print(f"left out: {printable(path)}: {printable(why)}")
        if len(self.found) > NAMED:
            console.print(f"left out: {len(self.found) - NAMED} recordings more; --json names them")


def tell_warnings(warnings: Sequence[str]) -> None:
    """On stderr, whatever stdout is for."""
    console = open_console(stderr=True)
    for warning in warnings[:NAMED]:
        console.print(f"warning: {printable(warning)}", soft_wrap=True)
    if len(warnings) > NAMED:
        console.print(f"warning: {len(warnings) - NAMED} more; --json names them")


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
            "channels": tuple(name.strip() for name in channels.split(",") if name.strip()) if channels else None,
            "pairs": PAPER_20 if bipolar else None,
            "reference": "average" if average_reference else "recorded",
            "line_hz": line_hz,
            **others,
        }
    )
