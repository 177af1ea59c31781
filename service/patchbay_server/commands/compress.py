"""`patchbay compress`: a fine-tuned model -> a delta file, here or on a server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

import patchbay
from patchbay.compress.options import METHODS, VALUES, Options
from patchbay.errors import InputError, InvalidRecipe
from patchbay_server.commands.options import JsonOption
from patchbay_server.commands.output import HEAD_ALONE, facts, open_console, print_json, progress, size_text
from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.commands.search_record import SearchRecord
from patchbay_server.jobs.inputs import DEFAULTS, check_inputs
from patchbay_server.sizes import parse_size

if TYPE_CHECKING:
    from patchbay.compress.compress import Report

Update = Callable[[int, int, str], None]


def compress(
    finetuned: Annotated[
        str, typer.Option(help="The fine-tuned model: a folder, a PEFT adapter's folder or a hub id.", metavar="MODEL")
    ],
    base: Annotated[
        str | None, typer.Option(help="The base model: a Hugging Face folder or hub id.", metavar="MODEL")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The delta file to write.", metavar="FILE")] = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = DEFAULTS.method,
    density: Annotated[
        float | None,
        typer.Option(
            show_default="0.05", help="Fraction of the matrices' entries that is kept, or their bytes' worth."
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="The file's largest size, such as 350kB or 2MiB: sets the density."),
    ] = None,
    target_kl: Annotated[
        float | None,
        typer.Option(
            help="The largest divergence on the calibration inputs: sets the density, before norms are tuned."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Inputs to search on: lines of text, .npy or .safetensors. Not the test set."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A class for each calibration input, one a line.")
    ] = None,
    score: Annotated[
        str,
        typer.Option(help="What the search maximises: kl (no labels), accuracy, balanced_accuracy, log_likelihood."),
    ] = DEFAULTS.score,
    evaluations: Annotated[int, typer.Option(help="Of the search, at most.")] = DEFAULTS.evaluations,
    optimizer: Annotated[str, typer.Option(help="cobyla or cmaes.")] = DEFAULTS.optimizer,
    support: Annotated[str, typer.Option(help="Which entries NPS keeps: sampled or topk.")] = DEFAULTS.support,
    scope: Annotated[
        str, typer.Option(help="What top-k NPS cuts into groups: the retained entries or all.")
    ] = DEFAULTS.scope,
    groups: Annotated[int, typer.Option(help="NPS's groups by magnitude, one weight each.")] = DEFAULTS.groups,
    values: Annotated[str, typer.Option(help=f"How kept values are stored: {', '.join(VALUES)}.")] = DEFAULTS.values,
    scale: Annotated[float, typer.Option(help="Multiplies the kept values; with magnitude only.")] = DEFAULTS.scale,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = DEFAULTS.seed,
    exact: Annotated[
        bool, typer.Option("--exact", help="Also store the bits of every entry that would not round to the fine-tune.")
    ] = False,
    no_distil: Annotated[
        bool, typer.Option("--no-distil", help="Do not tune norms and scales on the calibration inputs at the end.")
    ] = False,
    no_merge_statistics: Annotated[
        bool, typer.Option("--no-merge-statistics", help="Leave out the two numbers a neuron that merges may use.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Compress on this server, against its base; key from PATCHBAY_API_KEY."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --server: the delta's name there.")] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="With --server: make the new version current or stage it.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Compress a fine-tuned model to a delta of its base.

    A search keeps its evaluations in OUT.search.jsonl: after Ctrl-C or a crash, the same command goes on from there.
    """
    options = Options(
        method=method,
        density=density,
        target_size=None if target_size is None else parse_size(target_size, "target_size"),
        target_kl=target_kl,
        values=values,
        scale=scale,
        seed=seed,
        exact=exact,
        support=cast(Literal["sampled", "topk"], support),
        scope=cast(Literal["retained", "all"], scope),
        groups=groups,
        evaluations=evaluations,
        optimizer=cast(Literal["cobyla", "cmaes"], optimizer),
        score=cast(Literal["kl", "accuracy", "balanced_accuracy", "log_likelihood"], score),
        merge_statistics=not no_merge_statistics,
        distil=not no_distil,
    )
    check_inputs(options, calibration, labels)
    if server is not None:
        _refuse_given("--server: the server has the base and the store", base=base, out=out, force=force)
        report = _run_remotely(server, finetuned, name, options, calibration, labels, activate)
    else:
        _refuse_given("compressing here: it is for --server", name=name, no_activate=not activate)
        report = _run(base, finetuned, _checked_out(out, force), options, calibration, labels)
    if as_json:
        print_json(report.to_dict())
    else:
        open_console().print(_closing_table(report, options))


def _refuse_given(what: str, **given: object) -> None:
    for option, value in given.items():
        if value not in (None, False):
            raise InputError(f"--{option.replace('_', '-')} does not go with {what}", param=option)


def _checked_out(out: Path | None, force: bool) -> Path:
    if out is None:
        raise InputError("--out is missing: name the delta file to write, or a server with --server", param="out")
    if out.exists() and not force:
        raise InputError(f"{out} exists already: name another file, or replace it with --force", param="out")
    return out


def _run(
    base: str | None, finetuned: str, out: Path, options: Options, calibration: Path | None, labels: Path | None
) -> Report:
    if base is None:
        raise InputError("--base is missing: a delta is the difference from a base model", param="base")
    from patchbay.compress.calibration import Calibration
    from patchbay.compress.compress import compress as write_compressed

    silence_libraries()
    if calibration is None:
        with progress("compress") as update:
            return write_compressed(base, finetuned, out, options, on_progress=staged(update, 0))
    inputs = Calibration.read(calibration, labels)
    with _recorded(out, base, finetuned, options, calibration, labels) as record, progress("compress") as update:
        return write_compressed(
            base,
            finetuned,
            out,
            options,
            calibration=inputs,
            on_progress=staged(update, len(record.history)),
            history=record.history,
            on_evaluation=record.add,
        )


def _run_remotely(
    server: str,
    finetuned: str,
    name: str | None,
    options: Options,
    calibration: Path | None,
    labels: Path | None,
    activate: bool,
) -> Report:
    if name is None:
        raise InputError("--name is missing: what the delta is called on the server", param="name")
    from patchbay_server.commands.remote_compress import compress_remotely

    silence_libraries()
    # What is left out is the server's default: servers may know fewer options.
    given = {key: value for key, value in asdict(options).items() if value != getattr(DEFAULTS, key)}
    inputs = {"calibration": calibration, "labels": labels}
    return compress_remotely(server, finetuned, name, given, **inputs, activate=activate)


@contextmanager
def _recorded(
    out: Path, base: str, finetuned: str, options: Options, calibration: Path, labels: Path | None
) -> Iterator[SearchRecord]:
    """The record beside `out`, removed when the body succeeds and kept when anything ends it."""
    with open_console(stderr=True).status("hash"):
        digest = _digest(base, finetuned, options, [file for file in (calibration, labels) if file])
    record = SearchRecord.open(out.with_name(f"{out.name}.search.jsonl"), digest)
    try:
        yield record
    except KeyboardInterrupt:
        if record.file.exists():
            text = f"the evaluations so far are kept in {record.file}: the same command goes on from there"
            open_console(stderr=True).print(text, soft_wrap=True)
        raise
    except InvalidRecipe as error:
        if error.param == "history":
            raise InputError(f"{record.file} does not fit this run: {error.message}", param="out") from error
        raise
    record.remove()


def _digest(base: str, finetuned: str, options: Options, files: list[Path]) -> str:
    """Over everything that scores depend on: the models' files, the inputs, the options and our version."""
    from patchbay_server.jobs.files import model_files

    parts = [patchbay.__version__, repr(options)]
    models = [model_files(source).values() for source in (base, finetuned)]
    for file in [*models[0], *models[1], *files]:
        with file.open("rb") as opened:
            parts.append(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}")
    return f"sha256:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"


def staged(update: Update, num_replayed: int) -> Update:
    """Restarts the bar's clock with every stage, and behind evaluations that were only replayed: they took no time."""
    stage = ""

    def on_progress(done: int, total: int, note: str) -> None:
        nonlocal stage
        name = note.partition(" ")[0]
        if name != stage or (name == "search" and done <= num_replayed):
            update(0, total, note)
        stage = name
        update(done, total, note)

    return on_progress


def _closing_table(report: Report, options: Options) -> object:
    searched = report.evaluations > 0
    return facts(
        {
            "delta": report.path,
            "changes": HEAD_ALONE if report.head_alone else None,
            "bytes": size_text(report.num_bytes),
            **{f"  {kind}": f"{size:,}" for kind, size in report.sizes.items() if size},
            "fine-tune": size_text(report.original_bytes),
            "ratio": f"{report.ratio:.1f} (the fine-tune's weight files over the delta)",
            "bits per parameter": f"{report.bits_per_parameter:.3f}",
            "  without heads": f"{report.bits_without_heads:.3f}",
            "method": options.method,
            "density": f"{report.density:g}",
            "relative error": f"{report.relative_error:.4g}",
            "evaluations": report.evaluations if searched else None,
            "best of search": _score_text(report.score, options.score),
            "divergence": _divergence_text(report.divergence),
            "tuned at the end": _tuned_text(report, options),
            "seconds": f"{report.seconds:.1f}",
        }
    )


def _divergence_text(divergence: float | None) -> str:
    if divergence is None:
        return "not measured: --calibration takes unlabelled inputs, searches on them and measures this file"
    return f"{divergence:.4g} (of this file, on --calibration; 0: all outputs are the full fine-tune's)"


def _tuned_text(report: Report, options: Options) -> str | None:
    """For the methods that do, where there are inputs."""
    if report.divergence is None or not options.distil or options.method not in ("nps", "bitdelta"):
        return None
    if options.support != "sampled" and options.method == "nps":
        return None
    return (
        "yes"
        if report.tuned
        else "no: it did not help, or the inputs are fewer than four batches (a hundred short texts)"
    )


def _score_text(score: float | None, name: str) -> str | None:
    if score is None:
        return None
    what = "minus the divergence" if name == "kl" else name.replace("_", " ")
    return f"{score:.4g} ({what}, of values before they are rounded)"
