"""Results lines -> one point a method and size: means over tasks and seeds, with intervals. Knows nothing of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.results import Line, read_lines

Values = npt.NDArray[np.float64]
RESAMPLES = 2000
CELL = ("family", "task", "method", "bits", "seed")


@dataclass(frozen=True, slots=True)
class Mean:
    """Over tasks and seeds, with its 95 % interval: percentiles of a bootstrap that draws tasks, then their seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one size, over the tasks of a family that count; `tasks` of `asked` reached the size."""

    method: str
    bits: float
    bits_per_parameter: float
    bits_per_matrix_entry: float
    score: Mean
    retained: Mean
    agreement: Mean
    kl: Mean
    seconds: float
    tasks: int
    asked: int


@dataclass(frozen=True, slots=True)
class Results:
    """By family: `points`, sorted by size, then by what is retained, best first; `out_of_reach`, the (bits, method)
    whose smallest file is too large on every task; `needed`, the bits a parameter of methods of one size that was too
    large, over all tasks."""

    machine: Line
    references: Sequence[Line]
    points: Mapping[str, Sequence[Point]]
    out_of_reach: Mapping[str, Sequence[tuple[float, str]]]
    needed: Mapping[str, Mapping[str, float]]


def load(file: Path) -> Results:
    """Of every task what belongs to its latest fine-tune, and of every question the latest answer."""
    lines = read_lines(file)
    references = {(line["family"], line["task"]): line for line in lines if line["kind"] == "reference"}
    counted = {key: line for key, line in references.items() if line["counts"]}
    cells: dict[tuple[object, ...], Line] = {}
    for line in lines:
        reference = counted.get((line.get("family"), line.get("task")))
        if line["kind"] == "cell" and reference and line["finetune"] == reference["finetune"]:
            cells[tuple(line[field] for field in CELL)] = line
    machines = [line for line in lines if line["kind"] == "machine"]
    points: dict[str, list[Point]] = {family: [] for family, _ in sorted(references)}
    out_of_reach: dict[str, list[tuple[float, str]]] = {family: [] for family in points}
    for (family, bits, method), group in sorted(_grouped(cells.values()).items()):
        if all("unreachable" in line for line in group):
            out_of_reach[family].append((bits, method))
        else:
            points[family].append(_point(method, bits, group))
    for family in points:
        points[family].sort(key=lambda point: (point.bits, -point.retained.value, point.method))
    machine = machines[-1] if machines else {}
    needed = {family: _needed(line for line in cells.values() if line["family"] == family) for family in points}
    return Results(machine, [references[key] for key in sorted(references)], points, out_of_reach, needed)


def _needed(cells: Iterable[Line]) -> dict[str, float]:
    by_method: dict[str, dict[str, float]] = {}
    for line in cells:
        if line.get("needed") is not None:
            by_method.setdefault(line["method"], {})[line["task"]] = line["needed"]
    return {method: float(np.mean(list(tasks.values()))) for method, tasks in sorted(by_method.items())}


def _grouped(cells: Iterable[Line]) -> dict[tuple[str, float, str], list[Line]]:
    groups: dict[tuple[str, float, str], list[Line]] = {}
    for line in cells:
        groups.setdefault((line["family"], line["bits"], line["method"]), []).append(line)
    return groups


def _point(method: str, bits: float, lines: Sequence[Line]) -> Point:
    reached = [line for line in lines if "unreachable" not in line]

    def average(field: str) -> float:
        return float(np.mean([line[field] for line in reached]))

    return Point(
        method=method,
        bits=bits,
        bits_per_parameter=average("bits_per_parameter"),
        bits_per_matrix_entry=average("bits_per_matrix_entry"),
        score=_mean(reached, "score"),
        retained=_mean(reached, "retained"),
        agreement=_mean(reached, "agreement"),
        kl=_mean(reached, "kl"),
        seconds=average("compress_seconds"),
        tasks=len({line["task"] for line in reached}),
        asked=len({line["task"] for line in lines}),
    )


def _mean(lines: Sequence[Line], field: str) -> Mean:
    """Every task has the same weight, however many seeds it was tried with."""
    by_task: dict[str, list[float]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(np.nan if line[field] is None else line[field])
    tasks = [np.array(values) for _, values in sorted(by_task.items())]
    low, high = np.percentile(_bootstrap(tasks), [2.5, 97.5])
    return Mean(float(np.mean([task.mean() for task in tasks])), float(low), float(high))


def _bootstrap(tasks: Sequence[Values]) -> Values:
    """RESAMPLES means over tasks drawn with replacement, each over its seeds drawn with replacement."""
    rng = np.random.default_rng(0)
    size = (RESAMPLES, len(tasks))
    drawn = [task[rng.integers(0, len(task), (*size, len(task)))].mean(-1) for task in tasks]
    chosen = rng.integers(0, len(tasks), size)
    means: Values = np.take_along_axis(np.stack(drawn), chosen[None], axis=0)[0].mean(-1)
    return means
