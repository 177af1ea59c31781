"""The compression benchmark's language model and its fine-tunes, served: what an answer costs and what it is worth.

Fine-tunes are compressed as the product does by itself. Knows nothing of systems and of time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from benchmarks.families.base import Case, kept_folder, short_hash
from benchmarks.families.language import Language
from benchmarks.measure import score_of
from benchmarks.methods import METHODS, Effort, compress_to
from benchmarks.quality_compression import families_of, parse, scale_of
from benchmarks.results import Line
from benchmarks.systems.base import Ask
from benchmarks.systems.models import Size
from benchmarks.systems.shapes import merged, opened
from benchmarks.workload import SUMS, Work
from patchbay.backbone import Backbone

METHOD = "nps-sampled"  # what `patchbay compress` does unless told otherwise
BITS = (0.1, 0.4, 1.0)  # a parameter, of the file
QUICK_BITS = (0.1, 1.0)
REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Trained:
    """`dtype`: of the resident weights, as `Backbone.load` names it. `folder` keeps the delta files."""

    family: Language
    folder: Path
    dtype: str
    effort: Effort

    @property
    def base(self) -> Path:
        return self.family.base(_tell)

    def load(self) -> Backbone:
        return Backbone.load(self.base, dtype=self.dtype)

    def delta_files(self, count: int, size: Size) -> list[Path]:
        return [self._compressed(self._case(task), size.share) for task in self.family.tasks[:count]]

    def quality(self, count: int, size: Size) -> Line:
        """Perplexities on each fine-tune's own held-out text, patched in: of the base, under the delta file, and of the
        fine-tune itself, all with weights of the dtype that is served.
        """
        backbone, found = self.load(), {}
        for number, file in enumerate(self.delta_files(count, size)):
            task = self.family.tasks[number]
            deltas = {str(number): opened(file, backbone)}
            with merged(backbone, deltas, ((number, 1.0),)):
                compressed = _perplexity(self.family, task, backbone)
            found[task] = {
                "base": _of_folder(self.family, task, self.base, self.dtype),
                "delta": compressed,
                "finetune": _of_folder(self.family, task, self._case(task).finetuned, self.dtype),
            }
        return {"perplexity": found}

    def works(self, quick: bool) -> Mapping[str, Work]:
        """For each size one: requests that begin like the fine-tunes' held-out texts, all at the start."""
        found = {}
        for size in QUICK_BITS if quick else BITS:
            name = f"trained, {size:g} bits"
            found[name] = Work(name, self._asks(), len(self.family.tasks), Size(size), SUMS)
        return found

    def _asks(self) -> tuple[Ask, ...]:
        context, tasks = self.family.shape.context, self.family.tasks
        asks = []
        for number in range(REQUESTS):
            task = number % len(tasks)
            rows = self.family.targets(tasks[task])
            prompt = rows[number // len(tasks) % len(rows), : context // 4].tolist()
            asks.append(Ask(tuple(prompt), context // 2, ((task, 1.0),)))
        return tuple(asks)

    def _case(self, task: str) -> Case:
        return self.family.case(task, _tell)

    def _compressed(self, case: Case, bits: float) -> Path:
        options = METHODS[METHOD].options(1, 0)
        key = short_hash(case.fingerprint, bits, options, asdict(self.effort))
        build = partial(_compress, case, bits, self.effort)
        return kept_folder(self.folder / f"{case.task}-{key}", build) / "delta.safetensors"


def trained(cache: Path, dtype: str, *, quick: bool) -> Trained:
    """With the fine-tunes that the compression benchmark keeps in the same cache, trained now where it lacks them."""
    options = parse(["--families", "language", *(["--quick"] if quick else [])], None)
    scale = scale_of(options)
    [family] = families_of(options, scale, cache)
    assert isinstance(family, Language)
    return Trained(family, cache / "serving" / "trained", dtype, scale.effort)


def _tell(done: int, total: int, note: str) -> None:
    print(f"\r{100 * done // total} % {note}", end="\n" if done == total else "", file=sys.stderr)


def _compress(case: Case, bits: float, effort: Effort, folder: Path) -> None:
    target = int(bits * Backbone.load(case.base).num_parameters / 8)
    print(f"compressing {case.task} to {target:,} bytes", file=sys.stderr)
    compress_to(target, METHODS[METHOD], case, folder / "delta.safetensors", 0, effort)


def _perplexity(family: Language, task: str, backbone: Backbone) -> float:
    return score_of(family.logits(task, backbone.model), family.targets(task)).value


@lru_cache(maxsize=16)
def _of_folder(family: Language, task: str, folder: Path, dtype: str) -> float:
    return _perplexity(family, task, Backbone.load(folder, dtype=dtype))
