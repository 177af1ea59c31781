"""`patchbay tune`: which scale of a merge, and which parameters of its method, keep the most of the merged tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InvalidRecipe
from patchbay_server.commands.bindings import BindingOption, bound_paths
from patchbay_server.commands.options import BaseOption, JsonOption
from patchbay_server.commands.output import listing, open_console, print_json, progress
from patchbay_server.commands.plots import check_plot
from patchbay_server.commands.quiet import silence_libraries

if TYPE_CHECKING:
    from patchbay.compress.tune import Trial, Tuned
    from patchbay.merge.recipe import Scalar


def tune(
    recipe: Annotated[
        str,
        typer.Argument(
            help="An expression, as `neuromerging(a, b)`, or a file: a recipe's .json, mergekit's .yaml.",
            show_default=False,
        ),
    ],
    base: BaseOption,
    calibration: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="Inputs of one term's task, for each. No labels are needed.")
    ],
    delta: BindingOption = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="Try a parameter at several values, as lambda1=0,0.1,0.2. Repeatable."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw divergence against scale; needs matplotlib.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the scale of a merge that stays nearest to what every term answers on its own inputs.

    Prints the recipe to use: nothing is written. The recipe's own scale is not looked at.
    """
    if plot is not None:
        check_plot(plot)
    paths, choices = bound_paths(delta), _grid(grid or [])
    from patchbay.compress.calibration import Calibration
    from patchbay.compress.tune import tune as search
    from patchbay.merge.read import read_recipe

    silence_libraries()
    inputs = {name: Calibration.read(file) for name, file in _files(calibration).items()}
    with progress("tune") as update:
        tuned = search(base, read_recipe(recipe).recipe, paths, inputs, grid=choices, on_progress=update)
    if plot is not None:
        _draw(tuned, plot)
    if as_json:
        print_json(tuned.to_dict() | {"plot": str(plot) if plot else None})
    else:
        _print(tuned)


def _files(texts: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise InvalidRecipe(f"--calibration {text!r} is not NAME=FILE", param="calibration")
        if name in files:
            raise InvalidRecipe(f"{name!r} has two calibration files: give one", param="calibration")
        files[name] = Path(file).expanduser()
    return files


def _grid(texts: Sequence[str]) -> dict[str, list[Scalar]]:
    from patchbay.merge.recipe import RESERVED_KEYS

    grid: dict[str, list[Scalar]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values or key in grid:
            raise InvalidRecipe(f"--grid {text!r} is not KEY=VALUE,VALUE... with each key once", param="grid")
        if key in RESERVED_KEYS:
            raise InvalidRecipe(
                f"--grid {text!r}: {key} is no parameter of a method; scales are tried anyway", param="grid"
            )
        grid[key] = [_scalar(key, value.strip()) for value in values.split(",")]
    return grid


def _scalar(key: str, text: str) -> Scalar:
    """As in an expression: a number, true, false or a word."""
    from patchbay.errors import InvalidExpression
    from patchbay.merge import parse

    try:
        return parse(f"method(a; {key}={text})").params[key]
    except InvalidExpression as error:
        raise InvalidRecipe(f"--grid {key}={text}: {text!r} is no number, true, false or word", param="grid") from error


def _print(tuned: Tuned) -> None:
    trials = _of_best(tuned)
    terms = list(tuned.best.divergences)
    rows = [
        (f"{t.scale:.3g}", f"{t.divergence:.4g}", *(f"{t.divergences[term]:.4g}" for term in terms)) for t in trials
    ]
    columns = ("scale", "mean", *terms)
    console = open_console()
    console.print(listing(columns, rows, numeric=columns))
    for params, best in _best_by_params(tuned).items():
        if params:
            console.print(f"{params}: {best.divergence:.4g} at scale {best.scale:.3g}", soft_wrap=True)
    for warning in tuned.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
    if tuned.best.scale == max(trial.scale for trial in trials):
        console.print("the best scale is the largest that is tried: larger weights may be better still", soft_wrap=True)
    console.print("\nKL(term || merge) on its own inputs, nats. Use:", soft_wrap=True)
    console.print(str(tuned.to_dict()["recipe"]), soft_wrap=True)


def _of_best(tuned: Tuned) -> list[Trial]:
    """The scales that were tried with the best parameters."""
    return sorted((t for t in tuned.trials if t.params == tuned.best.params), key=lambda trial: trial.scale)


def _best_by_params(tuned: Tuned) -> Mapping[str, Trial]:
    best: dict[str, Trial] = {}
    for trial in sorted(tuned.trials, key=lambda trial: trial.divergence):
        best.setdefault(", ".join(f"{key}={value}" for key, value in trial.params.items()), trial)
    return best


def _draw(tuned: Tuned, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes, trials = figure.subplots(), _of_best(tuned)
    scales = [trial.scale for trial in trials]
    for term in tuned.best.divergences:
        axes.plot(scales, [trial.divergences[term] for trial in trials], "o-", markersize=3, alpha=0.6, label=term)
    axes.plot(scales, [trial.divergence for trial in trials], "ko-", markersize=4, label="mean")
    axes.axvline(tuned.best.scale, color="k", linestyle=":", label=f"best scale {tuned.best.scale:.3g}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("scale")
    axes.set_ylabel("KL(term || merge), nats")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=150)
