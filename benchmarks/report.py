"""Results as tables on the terminal, as Markdown and as a Pareto plot. Measures nothing itself.

python -m benchmarks.report RESULTS.jsonl --readme benchmarks/README.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.aggregate import Mean, Point, Results, load
from benchmarks.results import Line

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
REFERENCES = (
    "family",
    "task",
    "test rows",
    "fine-tune",
    "base",
    "base retains %",
    "probe",
    "counts",
    "head bytes",
    "statistics",
)
POINTS = ("bits", "method", "bits/param", "bits/matrix entry", "score", "retained %", "agreement %", "KL", "s", "tasks")
Grid = list[list[str]]


def print_report(results: Results, console: Console) -> None:
    """Two kinds of tables: what was fine-tuned, and for each family what every method keeps at every size."""
    if not console.is_terminal:
        console.width = 160  # a log has no width of its own, and 80 cuts the tables
    console.print(_table("fine-tunes", REFERENCES, _reference_rows(results)))
    for family, points in results.points.items():
        console.print(_table(family, POINTS, _point_rows(points)))
        console.print(_remark(results, family), markup=False, highlight=False)


def write_report(results: Results, stem: Path) -> list[Path]:
    """`stem`.md and `stem`.png."""
    text, picture = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.png")
    text.write_text(markdown(results) + "\n", "utf-8")
    plot(results, picture)
    return [text, picture]


def update_readme(results: Results, readme: Path, picture: Path) -> None:
    """Puts tables and the name of the plot, which is drawn, between two markers. Raises ValueError without markers."""
    before, after = around(readme, BEGIN, END)
    plot(results, picture)
    readme.write_text(f"{before}\n\n{markdown(results)}\n\n![Pareto plot]({picture.name})\n\n{after}", "utf-8")


def around(readme: Path, begin: str, end: str) -> tuple[str, str]:
    """A file's text up to one marker and from another on, with both. Raises ValueError where it lacks them."""
    before, has_begin, rest = readme.read_text("utf-8").partition(begin)
    _, has_end, after = rest.partition(end)
    if not (has_begin and has_end):
        raise ValueError(f"{readme} has no {begin} ... {end}")
    return before + begin, end + after


def measured_on(machine: Line) -> str:
    """The sentence above tables."""
    return (
        f"Measured {machine['started']} on {machine['processor']}, {machine['cores']} cores, {machine['workers']} "
        f"processes of one thread; Python {machine['python']}, torch {machine['torch']}, patchbay "
        f"{machine['patchbay']}."
    )


def markdown(results: Results) -> str:
    """The tables of `print_report`, under the machine that they were measured on."""
    parts = [
        measured_on(results.machine),
        markdown_table(REFERENCES, _reference_rows(results)),
    ]
    for family, points in results.points.items():
        table = [markdown_table(POINTS, _point_rows(points))] if points else []
        parts += [f"### {family}", *table, _remark(results, family)]
    return "\n\n".join(parts)


def plot(results: Results, file: Path) -> None:
    """For every family what is retained and the KL against the bits on disk, one line a method, with intervals."""
    import matplotlib  # noqa: PLC0415 - an extra, needed for this function only

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    families = [family for family, points in results.points.items() if points]
    figure, grid = plt.subplots(
        max(1, len(families)), 2, figsize=(12, 4.2 * max(1, len(families))), squeeze=False, layout="constrained"
    )
    for family, (left, right) in zip(families, grid, strict=False):
        points = results.points[family]
        for method in sorted({point.method for point in points}):
            line = [point for point in points if point.method == method]
            _draw(left, method, line, [point.retained for point in line])
            _draw(right, method, line, [point.kl for point in line])
        left.set_title(f"{family}: score retained, % of the fine-tune's")
        right.set_title(f"{family}: KL from the fine-tune, nats")
        right.set_yscale("log")
        right.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _draw(axes: Any, method: str, line: Sequence[Point], means: Sequence[Mean]) -> None:
    errors = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
    bits = [point.bits_per_parameter for point in line]
    axes.errorbar(bits, [mean.value for mean in means], yerr=errors, label=method, marker="o", ms=3, lw=1, capsize=2)
    axes.set_xscale("log")
    axes.set_xlabel("bits a parameter, whole file without head")
    axes.grid(alpha=0.3)


def _reference_rows(results: Results) -> Grid:
    return [
        [
            line["family"],
            line["task"],
            str(line["rows"]),
            f"{line['full']:.3f} [{line['full_low']:.3f}, {line['full_high']:.3f}]",
            f"{line['base']:.3f}",
            f"{line['base_retained']:.1f}",
            "-" if line["probe"] is None else f"{line['probe']:.3f}",
            "yes" if line["counts"] else "no",
            f"{line['head_bytes']:,}",
            f"{line['statistics_bits']:.4f}",
        ]
        for line in results.references
    ]


def _point_rows(points: Sequence[Point]) -> Grid:
    return [
        [
            f"{point.bits:g}",
            point.method,
            f"{point.bits_per_parameter:.3f}",
            f"{point.bits_per_matrix_entry:.3f}",
            f"{point.score.value:.3f}",
            _interval(point.retained, ".1f"),
            _interval(point.agreement, ".1f", 100),
            _interval(point.kl, ".2g"),
            f"{point.seconds:.1f}",
            f"{point.tasks}/{point.asked}",
        ]
        for point in points
    ]


def _remark(results: Results, family: str) -> str:
    by_bits: dict[float, list[str]] = {}
    for bits, method in results.out_of_reach[family]:
        by_bits.setdefault(bits, []).append(method)
    if by_bits:
        missed = "; ".join(f"{bits:g} bits: {', '.join(methods)}" for bits, methods in by_bits.items())
        sizes = "".join(f" {method}: {bits:.2f} bits/param." for method, bits in results.needed[family].items())
        return f"Out of reach, because the smallest file is larger: {missed}.{sizes}"
    return "" if results.points[family] else "No fine-tune of this family counts."


def _interval(mean: Mean, form: str, factor: float = 1) -> str:
    return f"{factor * mean.value:{form}} [{factor * mean.low:{form}}, {factor * mean.high:{form}}]"


def _table(title: str, columns: Sequence[str], rows: Grid) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(columns: Sequence[str], rows: Grid) -> str:
    """The first two columns to the left, numbers to the right."""
    rule = ["---", "---", *["---:"] * (len(columns) - 2)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(columns), rule, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a results file, and writes it into a README where one is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="tables and plot of a results file"
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--readme", type=Path, help="file with the two markers to write between")
    options = parser.parse_args(arguments)
    results = load(options.results)
    print_report(results, Console())
    if options.readme:
        update_readme(results, options.readme, options.readme.with_name(f"{options.results.stem}.png"))


if __name__ == "__main__":
    main()
