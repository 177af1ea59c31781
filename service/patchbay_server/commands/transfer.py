"""`patchbay transfer`: base + lambda * delta over a range of lambda, as a table and a plot."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InvalidRecipe
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import listing, open_console, print_json, progress
from patchbay_server.commands.plots import check_plot
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.jobs.inputs import check_retained

if TYPE_CHECKING:
    from patchbay.compress.transfer import Curve

MAX_SCALES = 100
COLUMNS = ("scale", "target", "retained")
MEASURES = {
    "accuracy": "accuracy",
    "negative_kl": "minus KL divergence",
    "negative_squared_error": "minus squared error",
    "cosine_similarity": "mean cosine of embeddings",
}
_NUMBER = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)


def transfer(
    base: BaseOption,
    delta: Annotated[Path, typer.Option(metavar="DELTA", help="The delta file.")],
    calibration: Annotated[
        Path, typer.Option(metavar="FILE", help="Inputs of the delta's task: lines of text, .npy or .safetensors.")
    ],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A class for each of them, one a line: target is accuracy.")
    ] = None,
    retained: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="the same", help="Inputs of what the base could do before."),
    ] = None,
    retained_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A class of the base's own head for each: retained is accuracy.")
    ] = None,
    scales: Annotated[str, typer.Option(help="first:last:step, or numbers with commas; -10 to 10.")] = "0:1.5:0.1",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw retained against target; needs matplotlib.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure base + lambda * delta: what the target task gains and what the base retains, for every lambda."""
    chosen = parse_scales(scales)
    check_retained(retained, retained_labels)
    if plot is not None:
        check_plot(plot)
    from patchbay.compress.calibration import Calibration
    from patchbay.compress.transfer import transfer as sweep

    silence_libraries()
    inputs = Calibration.read(calibration, labels)
    kept = Calibration.read(retained, retained_labels) if retained is not None else None
    with progress("transfer") as update:
        curve = sweep(base, delta, chosen, calibration=inputs, retained=kept, on_progress=update)
    if plot is not None:
        _draw(curve, plot)
    if as_json:
        print_json(asdict(curve) | {"plot": str(plot) if plot else None})
    else:
        _print_table(curve)


def parse_scales(text: str) -> list[float]:
    """`0:1.5:0.1`, both ends included, or `0,0.5,1`. Raises InvalidRecipe."""
    parts = [part.strip() for part in re.split("[:,]", text)]
    is_range = ":" in text
    if not all(map(_NUMBER.fullmatch, parts)) or (is_range and ("," in text or len(parts) != 3)):
        raise InvalidRecipe(f"{text!r} is neither first:last:step nor numbers with commas", param="scales")
    numbers = [Decimal(part) for part in parts]
    if is_range:
        first, last, step = numbers
        if step <= 0 or last < first:
            raise InvalidRecipe(f"{text!r} is no range: first <= last and step > 0", param="scales")
        count = int((last - first) / step) + 1
        numbers = [first + number * step for number in range(min(count, MAX_SCALES + 1))]
    if len(numbers) > MAX_SCALES:
        raise InvalidRecipe(f"{text!r} gives more than {MAX_SCALES} scales", param="scales")
    return [float(number) for number in numbers]


def _draw(curve: Curve, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.target for p in curve.points], [p.retained for p in curve.points], "o-", markersize=4)
    for point in curve.points:
        if math.isfinite(point.target) and math.isfinite(point.retained):
            place = (point.target, point.retained)
            axes.annotate(f"{point.scale:g}", place, (4, 4), textcoords="offset points", fontsize=8)
    if curve.best is not None:
        label = f"best harmonic mean, scale {curve.best.scale:g}"
        axes.plot([curve.best.target], [curve.best.retained], "o", markersize=10, fillstyle="none", label=label)
        axes.legend()
    target, retained = _explained(curve)
    axes.set_xlabel(f"target: {target}")
    axes.set_ylabel(f"retained: {retained}")
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=150)


def _print_table(curve: Curve) -> None:
    console = open_console()
    rows = [(f"{p.scale:g}", _text(p.target), _text(p.retained)) for p in curve.points]
    console.print(listing(COLUMNS, rows, numeric=COLUMNS))
    target, retained = _explained(curve)
    console.print(f"\ntarget: {target}; retained: {retained}", soft_wrap=True)
    if curve.best is not None:
        console.print(f"best harmonic mean: scale {curve.best.scale:g}")


def _explained(curve: Curve) -> tuple[str, str]:
    """What each measure is, and what it compares with."""
    measures = ((curve.target_measure, "the delta at scale 1"), (curve.retained_measure, "the base"))
    target, retained = (MEASURES[m] + ("" if m == "accuracy" else f" against {other}") for m, other in measures)
    return target, retained


def _text(value: float) -> str | None:
    return f"{value:z.4f}" if math.isfinite(value) else None
