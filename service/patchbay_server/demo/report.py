"""What a run measured, as a table, as JSON and as a picture. Measures nothing itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Accuracies are fractions of held-out images; `ratio` is the fine-tune's bytes over the delta's."""

    name: str
    base: float
    full: float
    delta: float
    bytes: int
    original_bytes: int
    ratio: float
    bits_per_param: float


@dataclass(frozen=True, slots=True)
class MergeResult:
    recipe: str
    accuracy: dict[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    tasks: list[TaskResult]
    merges: list[MergeResult]
    base_verified: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_json(results: Results, file: Path) -> None:
    file.write_text(json.dumps(results.to_dict(), indent=2) + "\n", "utf-8")


def print_tables(results: Results, console: Console) -> None:
    """Two tables: what each delta keeps and costs, and what every recipe reads."""
    deltas = Table(title="accuracy on held-out images, and size", title_justify="left")
    for column in ("task", "base", "full", "delta", "delta bytes", "full bytes", "ratio", "bits/param"):
        deltas.add_column(column, justify="left" if column == "task" else "right")
    for t in results.tasks:
        deltas.add_row(
            t.name,
            f"{t.base:.3f}",
            f"{t.full:.3f}",
            f"{t.delta:.3f}",
            f"{t.bytes:,}",
            f"{t.original_bytes:,}",
            f"{t.ratio:.1f}x",
            f"{t.bits_per_param:.2f}",
        )
    console.print(deltas)
    names = list(results.merges[0].accuracy)
    merges = Table(title="every recipe on every task, over HTTP from one resident base", title_justify="left")
    merges.add_column("model in the request")
    for name in names:
        merges.add_column(name, justify="right")
    for merge in results.merges:
        merges.add_row(merge.recipe, *(f"{merge.accuracy[name]:.3f}" for name in names))
    console.print(merges)


def plot(results: Results, file: Path) -> None:
    """A heat map of recipes against tasks and bars of bytes, as PNG."""
    import matplotlib  # noqa: PLC0415 - an extra, needed for this function only

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    names = list(results.merges[0].accuracy)
    grid = [[merge.accuracy[name] for name in names] for merge in results.merges]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 0.42 * len(grid) + 1.8), width_ratios=(3, 1.4), layout="constrained"
    )
    left.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    left.set_xticks(range(len(names)), names)
    left.set_yticks(range(len(grid)), [merge.recipe for merge in results.merges])
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            shade = "white" if value > 0.6 else "black"
            left.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=shade)
    left.set_title("accuracy of every recipe on every task")
    tasks = results.tasks
    right.bar([t.name for t in tasks], [t.original_bytes / 1e6 for t in tasks], color="#c3c9d3", label="full fine-tune")
    right.bar([t.name for t in tasks], [t.bytes / 1e6 for t in tasks], color="#2f6fed", label="delta")
    right.set_ylim(0, 1.25 * max(t.original_bytes for t in tasks) / 1e6)
    right.tick_params(axis="x", rotation=35)
    right.set_ylabel("megabytes")
    right.set_title("size on disk")
    right.legend(frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
