"""Results of merging as tables and as one picture of bars and a radar. Measures nothing itself.

python -m benchmarks.report_merging RESULTS.jsonl --readme benchmarks/README.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.merging import ALL, LEFT_OUT, PAIRS
from benchmarks.report import around, markdown_table, measured_on
from benchmarks.results import Line, read_lines

BEGIN, END = "<!-- merging results -->", "<!-- end of merging results -->"
RUN = ("tasks", "rows", "finetunes")  # what one table is of
CELL = ("part", "source", "method", "tuned", "merged", "scored")
BEST = 6  # merges in the radar
Grid = list[list[str]]


@dataclass(frozen=True, slots=True)
class Merging:
    """What was asked last: `references` by task, and the latest line of every merge by part, the best ones first
    within a source.
    """

    machine: Line
    references: Mapping[str, Line]
    parts: Mapping[str, Sequence[Line]]
    refused: Sequence[Line]

    @property
    def tasks(self) -> list[str]:
        return list(self.references)


def load(file: Path) -> Merging:
    """Lines of other tasks, rows or fine-tunes than the last line's are left out."""
    lines = read_lines(file)
    merges = [line for line in lines if line["kind"] == "merge"]
    machines = [line for line in lines if line["kind"] == "machine"]
    if not merges:
        return Merging(machines[-1] if machines else {}, {}, {}, [])
    last = merges[-1]
    latest = {_key(line, CELL): line for line in merges if _key(line, RUN) == _key(last, RUN)}
    alone = {line["tasks"]: line for line in lines if line["kind"] == "reference"}
    parts: dict[str, list[Line]] = {}
    for line in latest.values():
        if "refused" not in line:
            parts.setdefault(line["part"], []).append(line)
    sources = list(dict.fromkeys(line["source"] for line in latest.values()))
    for found in parts.values():
        found.sort(key=lambda line: (sources.index(line["source"]), -line["average_retained"]))
    refused = [line for line in latest.values() if "refused" in line]
    return Merging(machines[-1], {task: alone[task] for task in last["tasks"].split("+")}, parts, refused)


def markdown(results: Merging) -> str:
    """All tables, under the machine that they were measured on."""
    if not results.parts:
        return "Nothing is measured yet."
    text = [
        measured_on(results.machine),
        _reference_table(results),
    ]
    if found := results.parts.get(ALL):
        text += [f"### All {len(results.tasks)} tasks merged", _table(found, results.tasks)]
        if any("tool" in line for line in found):
            text += ["### Beside other tools, % retained", _tool_table(found)]
    if found := results.parts.get(LEFT_OUT):
        scored = found[0]["scored"].split("+")
        title = f"### Tasks that were left out of the merge: {', '.join(scored)}"
        text += [title, _table(found, scored), _base_remark(results, scored)]
    if found := results.parts.get(PAIRS):
        text += ["### Two tasks at a time", _pair_table(found)]
    text += [f"Refused: {line['method']} of {line['source']}: {line['refused']}." for line in results.refused]
    return "\n\n".join(text)


def write_report(results: Merging, stem: Path) -> list[Path]:
    """`stem`.md and, where there is anything to draw, `stem`.png."""
    text, picture = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.png")
    text.write_text(markdown(results) + "\n", "utf-8")
    if not results.parts.get(ALL):
        return [text]
    plot(results, picture)
    return [text, picture]


def update_readme(results: Merging, readme: Path, picture: Path) -> None:
    """Puts tables and the name of the plot, which is drawn, between two markers. Raises ValueError without markers."""
    before, after = around(readme, BEGIN, END)
    plot(results, picture)
    readme.write_text(f"{before}\n\n{markdown(results)}\n\n![Bars and radar]({picture.name})\n\n{after}", "utf-8")


def plot(results: Merging, file: Path) -> None:
    """Left what every method of ours retains of all tasks, right the best ones task by task."""
    import matplotlib  # noqa: PLC0415 - an extra, needed for this function only

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    lines = [line for line in results.parts[ALL] if "tool" not in line]
    figure = plt.figure(figsize=(14, 7), layout="constrained")
    _draw_bars(figure.add_subplot(1, 2, 1), lines)
    _draw_radar(figure.add_subplot(1, 2, 2, projection="polar"), results, lines)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_bars(axes: Any, lines: Sequence[Line]) -> None:
    series = sorted({(line["source"], line["tuned"]) for line in lines})
    best = {
        line["method"]: line["average_retained"] for line in reversed(lines) if line["source"] == lines[0]["source"]
    }
    methods = sorted({line["method"] for line in lines}, key=lambda method: best.get(method, 0))
    height = 0.8 / len(series)
    for number, (source, tuned) in enumerate(series):
        found = {line["method"]: line for line in lines if (line["source"], line["tuned"]) == (source, tuned)}
        places = [methods.index(method) + (number - (len(series) - 1) / 2) * height for method in found]
        label = f"{source}{', tuned' if tuned else ''}"
        axes.barh(places, [line["average_retained"] for line in found.values()], height, label=label)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlabel("accuracy retained, % of each task's own fine-tune, mean over tasks")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(axis="x", alpha=0.3)


def _draw_radar(axes: Any, results: Merging, lines: Sequence[Line]) -> None:
    """Of the first source, each method as it is best, and the base."""
    angles = np.linspace(0, 2 * np.pi, len(results.tasks), endpoint=False)
    shown: dict[str, Line] = {}
    for line in lines:  # the best ones come first
        if line["source"] == lines[0]["source"]:
            shown.setdefault(line["method"], line)
    curves = {_label(line): line["retained"] for line in list(shown.values())[:BEST]}
    curves["base"] = {task: _base_retained(results.references[task]) for task in results.tasks}
    for label, retained in curves.items():
        values = [retained[task] for task in results.tasks]
        axes.plot([*angles, angles[0]], [*values, values[0]], label=label, lw=1, ls=":" if label == "base" else "-")
    axes.set_xticks(angles, results.tasks)
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1.25, 1.1))
    axes.set_title(f"{lines[0]['source']}: retained %, by task")


def _reference_table(results: Merging) -> str:
    def shown(score: Mapping[str, float]) -> str:
        return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"

    rows = [
        [task, str(line["rows"]), shown(line["finetune"]), shown(line["base"]), f"{_base_retained(line):.1f}"]
        for task, line in results.references.items()
    ]
    return markdown_table(("task", "test rows", "fine-tune alone", "its head on the base", "base retains %"), rows)


def _table(lines: Sequence[Line], tasks: Sequence[str]) -> str:
    columns = ("source", "method", "scale", "average", "retained %", *tasks, "build s", "MB", "path")
    rows = [
        [
            line["source"],
            line["method"],
            _scale(line),
            f"{line['average']:.3f} ± {line['half_width']:.3f}",
            f"{line['average_retained']:.1f}",
            *(f"{line['scores'][task]['value']:.3f}" for task in tasks),
            f"{line['build_seconds']:.2f}",
            f"{line['bytes'] / 1e6:.2f}",
            line["path"],
        ]
        for line in lines
    ]
    return markdown_table(columns, rows)


def _tool_table(lines: Sequence[Line]) -> str:
    """What is retained by the other tools' methods as they come, beside ours of the source that is measured first."""
    ours = next(line["source"] for line in lines if "tool" not in line)
    theirs = [line for line in lines if "tool" in line]
    sources = [ours, *dict.fromkeys(line["source"] for line in theirs)]
    found = {(line["method"], line["source"]): line["average_retained"] for line in lines if not line["tuned"]}
    methods = sorted({line["method"] for line in theirs}, key=lambda method: (-found.get((method, ours), 0), method))
    rows = [[method, *(_number(found.get((method, source))) for source in sources)] for method in methods]
    return markdown_table(("method", "patchbay", *sources[1:]), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _pair_table(lines: Sequence[Line]) -> str:
    """The mean over the pairs."""
    groups: dict[tuple[str, bool], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["tuned"]), []).append(line)
    ordered = sorted(groups.items(), key=lambda item: -_mean(item[1], "average_retained"))
    rows = [
        [
            method,
            "tuned" if tuned else "1",
            f"{_mean(group, 'average'):.3f}",
            f"{_mean(group, 'average_retained'):.1f}",
            ", ".join(f"{line['merged']} {line['average_retained']:.1f}" for line in group),
        ]
        for (method, tuned), group in ordered
    ]
    return markdown_table(("method", "scale", "average", "retained %", "of each pair"), rows)


def _base_remark(results: Merging, tasks: Sequence[str]) -> str:
    base = float(np.mean([results.references[task]["base"]["value"] for task in tasks]))
    retained = float(np.mean([_base_retained(results.references[task]) for task in tasks]))
    return f"Their heads on the unchanged base: {base:.3f}, {retained:.1f} % retained."


def _base_retained(reference: Line) -> float:
    return 100 * float(reference["base"]["value"]) / float(reference["finetune"]["value"])


def _label(line: Line) -> str:
    return f"{line['method']} x {line['scale']:.2g}" if line["tuned"] else str(line["method"])


def _mean(lines: Sequence[Line], field: str) -> float:
    return float(np.mean([line[field] for line in lines]))


def _scale(line: Line) -> str:
    return f"{line['scale']:.3g} (tuned)" if line["tuned"] else "1"


def _key(line: Line, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(line[field] for field in fields)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a results file, and writes it into a README where one is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report_merging", description="tables and plot of a results file"
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--readme", type=Path, help="file with the two markers to write between")
    options = parser.parse_args(arguments)
    results = load(options.results)
    Console().print(markdown(results), markup=False, highlight=False, soft_wrap=True)
    if options.readme:
        update_readme(results, options.readme, options.readme.with_name(f"{options.results.stem}.png"))


if __name__ == "__main__":
    main()
