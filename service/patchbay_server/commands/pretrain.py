"""`patchbay neuript pretrain`: an EEG backbone from recordings without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands.interrupts import held_back
from patchbay_server.commands.options import JsonOption
from patchbay_server.commands.output import facts, open_console, print_json, progress
from patchbay_server.commands.plots import check_plot
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.commands.recordings import (
    AverageOption,
    BipolarOption,
    ChannelsOption,
    DataOption,
    LeftOut,
    LineOption,
    WindowOption,
    tell_warnings,
    to_steps,
)

if TYPE_CHECKING:
    from patchbay.training.pretrain import Report
    from patchbay.training.windows import Source


def pretrain(
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the model goes; what was begun there goes on.")],
    size: Annotated[str, typer.Option(help="test, small, medium or paper.")] = "small",
    window_seconds: WindowOption = 4.0,
    channels: ChannelsOption = None,
    bipolar: BipolarOption = False,
    average_reference: AverageOption = False,
    line_hz: LineOption = None,
    reject: Annotated[bool, typer.Option(help="Leave out windows that are over 100 uV, or flat.")] = True,
    epochs: Annotated[int, typer.Option(min=1, help="Of the learning rate's cycle.")] = 40,
    rest: Annotated[int, typer.Option(min=0, help="Epochs after it, at the lowest rate; the paper has 40.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    rate: Annotated[float, typer.Option(min=1e-7, max=1, help="The highest learning rate.")] = 3e-4,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="The last part of each recording: judged on.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 520,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the loss; needs matplotlib.", show_default="none")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-train on recordings without labels: hidden samples are guessed from the others (AAMP).

    Of --json, judged is the mean error of hidden samples in held-out windows, and zero that of guessing zeros there.

    A checkpoint is kept every 200 steps, and after Ctrl-C or SIGTERM: the same command goes on from there.
    """
    if plot is not None:
        check_plot(plot)
    from patchbay.training import doubts
    from patchbay.training.checkpoint import check_out
    from patchbay.training.files import files_in
    from patchbay.training.misfits import notes
    from patchbay.training.pretrain import Options
    from patchbay.training.pretrain import pretrain as train
    from patchbay.training.shortage import check_enough
    from patchbay.training.windows import Batches, sources, split

    silence_libraries()
    check_out(out, goes_on=True)
    steps = to_steps(window_seconds, channels, bipolar, average_reference, line_hz, rejects=reject)
    options = Options(_known(size), epochs, rest, batch_size, highest_rate=rate, seed=seed, steps=steps)
    left_out = LeftOut()
    with progress("recordings") as update:
        found = sources(files_in(data), steps, lambda path, number, of: update(number, of, path.name), left_out)
    left_out.tell()
    warnings = notes((source.path, source.windows.warnings) for source in found)
    tell_warnings(warnings)
    first, second = split(found, held_out)
    check_enough(found, first, batch_size)
    with _kept(out), held_back() as is_asked, progress("pre-training") as update:
        known = ""

        def show(report: Report) -> None:
            nonlocal known
            known = f"loss {report.loss:.3f}, held out {report.judged:.3f}"

        def step(done: int, of: int) -> bool:
            update(done, of, known)
            return not is_asked()

        last = train(Batches(first), Batches(second), out, options, show, step)
    if plot is not None:
        _draw(out, plot)
    doubtful = doubts.of_reconstruction(last.judged, last.zero)
    tell_warnings(doubtful)
    warnings += doubtful
    _print(last, found, out, {"left_out": left_out.found, "warnings": warnings}, as_json=as_json)


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Says of a run that is stopped what of it is kept."""
    from patchbay.training.checkpoint import FOLDER, state_of

    try:
        yield
    except KeyboardInterrupt:
        state = state_of(out)
        kept = f"its first {state.step} steps are kept in {out / FOLDER}" if state else "no step of it is kept"
        goes_on = "goes on from there" if state else "begins anew"
        open_console(stderr=True).print(f"{kept}: the same command {goes_on}", soft_wrap=True)
        raise


def _known(size: str) -> str:
    from patchbay.errors import InputError
    from patchbay.models.neuript.config import SIZES

    if size not in SIZES:
        raise InputError(f"{size!r} is no size: {', '.join(SIZES)}", param="size")
    return size


def _print(last: Report, found: list[Source], out: Path, told: dict[str, object], *, as_json: bool) -> None:
    windows = sum(len(source.windows.signal) for source in found)
    rejected = sum(len(source.windows.rejected) for source in found)
    counted = {"recordings": len(found), "windows": windows, "rejected": rejected}
    if as_json:
        print_json({"out": str(out), **counted, **told, **asdict(last)})
        return
    of_zero = f"{last.judged / last.zero:.3f} of guessing zeros" if math.isfinite(last.judged) else None
    rows = {
        "written": out,
        "recordings": f"{len(found)}: {windows} windows, {rejected} rejected",
        "steps": last.steps,
        "loss": f"{last.loss:.4f}",
        "held out": f"{last.judged:.4f}, {of_zero}" if of_zero else None,
    }
    open_console().print(facts(rows))


def _draw(out: Path, file: Path) -> None:
    """Of all that was reported there, also before the run was stopped and went on."""
    from matplotlib.figure import Figure

    from patchbay.training.checkpoint import state_of

    state = state_of(out)
    reports = state.history if state else []
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = [report["step"] for report in reports]
    axes.plot(steps, [report["loss"] for report in reports], marker=".", label="loss in training")
    axes.plot(steps, [report["judged"] for report in reports], marker=".", label="held out, half hidden")
    axes.axhline(reports[-1]["zero"], linestyle="--", color="grey", label="guessing zeros")
    axes.set_xlabel("step")
    axes.set_ylabel("mean error of hidden samples, companded")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png", dpi=150)
