"""`patchbay neuript finetune`: a classifier of EEG from recordings with labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay_server.commands.options import JsonOption
from patchbay_server.commands.output import facts, listing, open_console, print_json, progress
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
    from patchbay.models.neuript.steps import Steps
    from patchbay.training.examples import Examples, Split
    from patchbay.training.finetune import Outcome, Progress
    from patchbay.training.labels import Rule
    from patchbay.training.metrics import Metrics


FIXED = (  # by a preset, which they cannot be given beside
    *("labels", "classes", "window_seconds", "stride_seconds", "onset", "channels", "bipolar", "average_reference"),
    *("line_hz", "split", "test", "validation"),
)


def finetune(
    context: typer.Context,
    base: Annotated[Path, typer.Option(metavar="FOLDER", help="A pre-trained NeurIPT.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the classifier goes.")],
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A data set of the paper: labels, channels, windows and parts are its own."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table: file, label, and onset, duration, subject, part."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="TEXT=CLASS", help="Without a table: what an annotation's text stands for."),
    ] = None,
    window_seconds: WindowOption = 4.0,
    stride_seconds: Annotated[
        float | None, typer.Option(min=0.05, max=120, help="From window to window.", show_default="the window's length")
    ] = None,
    onset: Annotated[
        float | None,
        typer.Option(help="One window an event, so many seconds after it. Without, windows fill it."),
    ] = None,
    channels: ChannelsOption = None,
    bipolar: BipolarOption = False,
    average_reference: AverageOption = False,
    line_hz: LineOption = None,
    split: Annotated[
        str, typer.Option(help="chronological, subject, or given (by the table's parts).")
    ] = "chronological",
    test: Annotated[float, typer.Option(min=0.05, max=0.9, help="The share that is tested on.")] = 0.3,
    validation: Annotated[float, typer.Option(min=0, max=0.5, help="The share that decides when to stop.")] = 0.15,
    frozen: Annotated[bool, typer.Option(help="Fit the head alone, in seconds.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    rate: Annotated[float, typer.Option(min=1e-7, max=1, help="The highest learning rate.")] = 3e-4,
    seed: Annotated[int, typer.Option(min=0)] = 520,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix.", show_default="none")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on recordings with labels, and hold it against what simple means reach.

    Nothing is kept of a run that is interrupted: it begins anew.
    """
    if plot is not None:
        check_plot(plot)
    from patchbay.training.base import check_base
    from patchbay.training.checkpoint import check_out
    from patchbay.training.examples import examples, unlike
    from patchbay.training.examples import split as divide
    from patchbay.training.files import files_in
    from patchbay.training.finetune import Options
    from patchbay.training.finetune import finetune as train
    from patchbay.training.labels import only_with

    _check_extra()
    silence_libraries()
    check_base(base)
    check_out(out, goes_on=False)
    options = Options(epochs=0 if frozen else epochs, batch_size=batch_size, highest_rate=rate, seed=seed)
    if preset is None:
        _check_stride(stride_seconds, onset)
        timing = {"stride_seconds": stride_seconds, "onset_seconds": onset, "rejects": False}
        steps = to_steps(window_seconds, channels, bipolar, average_reference, line_hz, **timing)
        named = _named(classes or [])
        how, files = _split(split, validation, test), files_in(data)
        rule = only_with(steps.channels, _rule(data, labels, named))
    else:
        named = {}
        steps, how, rule, files = _of_preset(preset, data, context)
    left_out = LeftOut()
    with _said_anew(out), progress("recordings") as update:

        def tell(path: Path, number: int, of: int) -> None:
            update(number, of, path.name)

        found = examples(files, rule, steps, tell, left_out, annotations=named)
    left_out.tell()
    warnings = [*unlike(found, how), *_flat(found, data, how), *_misfits(found, preset)]
    tell_warnings(warnings)
    parts = divide(found, how)
    with _said_anew(out), progress("fine-tuning") as update:
        stage, known = "", ""

        def show(at: Progress) -> None:
            nonlocal stage, known
            if at.stage != stage:
                update(0, at.of, at.stage)
            stage, known = at.stage, at.note or known
            update(at.done, at.of, known or at.stage)

        outcome = train(base, parts, steps, out, options, show)
    if plot is not None:
        _draw(outcome, plot)
    tell_warnings(outcome.warnings)
    _print(outcome, out, left_out.found, [*warnings, *outcome.warnings], as_json=as_json)


@contextmanager
def _said_anew(out: Path) -> Iterator[None]:
    """Says of a run that is stopped that nothing of it is kept, or what it left where it was about to be written."""
    try:
        yield
    except KeyboardInterrupt:
        is_begun = out.exists() and any(out.iterdir())
        left = f"{out} may not be whole: remove it" if is_begun else "nothing of the fine-tune is kept"
        open_console(stderr=True).print(f"{left}; the same command begins anew", soft_wrap=True)
        raise


def _flat(found: Sequence[Examples], data: Path, how: Split) -> list[str]:
    """Two recordings of one subject may be on both sides of a split by subject, where nothing says whose they are."""
    if how.kind != "subject" or any(one.subject != one.source.path.stem for one in found):
        return []
    return [f"every recording is taken for a subject of its own: neither folders in {data} nor a table say whose it is"]


def _misfits(found: Sequence[Examples], preset: str | None) -> list[str]:
    """Of a preset the windows are as the data set has them."""
    from patchbay.training.misfits import INTO_NEXT, notes, sentences

    counts = [
        (one.source.path, {kind: count for kind, count in one.misfits.items() if not (preset and kind == INTO_NEXT)})
        for one in found
    ]
    return [*sentences(counts), *notes((one.source.path, one.source.windows.warnings) for one in found)]


def _of_preset(name: str, data: Path, context: typer.Context) -> tuple[Steps, Split, Rule, list[Path]]:
    """Raises InputError for an option that it fixes."""
    from patchbay.errors import InputError
    from patchbay.training.presets import preset_called

    found = preset_called(name)
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in FIXED and source is not None and source.name != "DEFAULT":
            written = option.opts[0]
            raise InputError(f"{written} is fixed by --preset {name}: leave one of them out", param=option.name)
    return found.steps, found.split, found.rule(data), found.recordings(data)


def _check_stride(stride_seconds: float | None, onset: float | None) -> None:
    from patchbay.errors import InputError

    if stride_seconds is not None and onset is not None:
        text = "--stride-seconds is for windows that fill an event, and with --onset there is one: leave one out"
        raise InputError(text, param="stride_seconds")


def _check_extra() -> None:
    from patchbay.errors import InputError

    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise InputError("fine-tuning compares with scikit-learn: pip install 'patchbay[eeg]'", param="data") from None


def _named(classes: list[str]) -> dict[str, str]:
    """Annotation -> class."""
    from patchbay.errors import InputError

    wrong = [text for text in classes if "=" not in text]
    if wrong:
        raise InputError(f"--class {wrong[0]!r} is not TEXT=CLASS", param="class")
    return dict(text.rpartition("=")[::2] for text in classes)


def _rule(data: Path, labels: Path | None, named: dict[str, str]) -> Rule:
    from patchbay.errors import InputError
    from patchbay.training.labels import by_annotations, by_table

    if labels is None:
        return by_annotations(data, named)
    if named:
        raise InputError("--class names annotations, and --labels is a table: give one of them", param="labels")
    return by_table(labels, data)


def _split(kind: str, validation: float, test: float) -> Split:
    from typing import get_args

    from patchbay.errors import InputError
    from patchbay.training.examples import Split, SplitName

    if kind not in get_args(SplitName):
        raise InputError(f"{kind!r} is no split: {', '.join(get_args(SplitName))}", param="split")
    if validation + test >= 1:
        raise InputError("test and validation leave nothing to train on: their shares sum to less than 1", param="test")
    return Split(kind, validation, test)  # type: ignore[arg-type]


def _print(outcome: Outcome, out: Path, left_out: dict[str, str], warnings: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), **asdict(outcome), "left_out": left_out, "warnings": warnings})
        return
    console = open_console()
    windows = ", ".join(f"{count} {part}" for part, count in outcome.windows.items())
    console.print(facts({"written": out, "classes": ", ".join(outcome.classes), "windows": windows}))
    is_binary = len(outcome.classes) == 2
    columns = ["", "balanced accuracy", *(["AUROC", "AUC-PR"] if is_binary else ["kappa"]), "weighted F1"]
    rows = [[name, *_row(found, is_binary)] for name, found in outcome.scores.items()]
    console.print(listing(columns, rows, columns[1:]))


def _row(found: Metrics | None, is_binary: bool) -> list[str]:
    if found is None:
        return ["-"] * (4 if is_binary else 3)
    between = (found.auroc, found.auc_pr) if is_binary else (found.kappa,)
    return [f"{value:.3f}" for value in (found.balanced_accuracy, *between, found.weighted_f1) if value is not None]


def _draw(outcome: Outcome, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(outcome.confusion, cmap="Blues", vmin=0)
    most = max(map(max, outcome.confusion))
    for row, counts in enumerate(outcome.confusion):
        for column, count in enumerate(counts):
            colour = "white" if count > most / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    places = range(len(outcome.classes))
    axes.set_xticks(places, outcome.classes, rotation=30, ha="right")
    axes.set_yticks(places, outcome.classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("class")
    figure.savefig(file, format="png", dpi=150)
