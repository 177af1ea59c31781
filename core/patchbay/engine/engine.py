"""Runs requests on one backbone, one recipe at a time under a lock. Knows nothing of the web, the store and names of
deltas.

`load` gives the decoded delta behind a digest; everything here is keyed by digests and recipe hashes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock

from patchbay.architecture import CLASSIFIERS, Task
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.manifest import Token
from patchbay.engine.pool import Pool
from patchbay.errors import ShuttingDown, UnsupportedTask
from patchbay.execute.patch import Patcher
from patchbay.execute.vocabulary import appended_rows
from patchbay.merge import CanonicalRecipe, Merged, build, find_method
from patchbay.merge.preview import Preview, preview, warnings_of
from patchbay.models.classifier import Classification, classify
from patchbay.models.embedding import Embedded, embed
from patchbay.models.generation import Completion, SamplingParams, any_set, complete
from patchbay.models.heads import HeadModel, base_head, choose_head, delta_head
from patchbay.models.inputs import Batch, Input, Inputs

Load = Callable[[str], Delta]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: the resident weights are bit for bit those that were loaded."""

    ok: bool
    fingerprint: str
    resident_digest: str


class Engine:
    """`delta_bytes` bounds the decoded deltas kept in memory, `plan_bytes` plans and merged deltas."""

    def __init__(
        self, backbone: Backbone, load: Load, *, delta_bytes: int = 4 << 30, plan_bytes: int = 1 << 30
    ) -> None:
        self.backbone = backbone
        self.inputs = Inputs(backbone)
        self.deltas: Pool[Delta] = Pool(delta_bytes)
        self.plans: Pool[Merged] = Pool(plan_bytes)
        self.heads: Pool[HeadModel] = Pool(1 << 28)
        self._load = load
        self._patcher = Patcher(backbone)
        self._lock = Lock()
        self._stopping = Event()

    def classify(
        self, recipe: CanonicalRecipe | None, inputs: Sequence[Input], names: Mapping[str, str], head: str | None
    ) -> list[Classification]:
        """Labels for every input. `names` maps the recipe's digests to the names that the caller used; `head` is such a
        name.

        Raises UnsupportedTask, AmbiguousHead, InputError.
        """
        self._require("classify", *CLASSIFIERS, Task.EMBEDDING)
        deltas = self._deltas(recipe)
        batch = self._batch(inputs, deltas)
        ready = self._head(deltas, names, head)
        with self._patched(recipe, deltas):
            return classify(ready, batch)

    def embed(self, recipe: CanonicalRecipe | None, inputs: Sequence[Input]) -> Embedded:
        """Unit vectors. Raises UnsupportedTask, InputError."""
        self._require("embed", Task.EMBEDDING)
        deltas = self._deltas(recipe)
        batch = self._batch(inputs, deltas)
        with self._patched(recipe, deltas):
            return embed(self.backbone, batch)

    def complete(
        self,
        recipe: CanonicalRecipe | None,
        prompts: Sequence[str | list[int]],
        params: SamplingParams,
        cancelled: Event | None = None,
    ) -> list[Completion]:
        """One completion a prompt; fewer and shorter ones once `cancelled` is set, for nobody reads them then.

        Raises UnsupportedTask, InputError; ShuttingDown where the engine was stopped meanwhile.
        """
        self._require("complete text", Task.CAUSAL_LM, Task.SEQ2SEQ_LM)
        deltas = self._deltas(recipe)
        tokenizer = self.inputs.tokenizer_with(_tokens(deltas))
        with self._patched(recipe, deltas):
            ends = [self._stopping, *([cancelled] if cancelled else [])]
            done = [complete(self.backbone, tokenizer, prompt, params, ends) for prompt in prompts if not any_set(ends)]
        if self._stopping.is_set():
            raise ShuttingDown("the server is shutting down: ask again elsewhere or later")
        return done

    def stop(self) -> None:
        """Generation ends at its next token, now and from now on: the process is about to end."""
        self._stopping.set()

    def check_health(self) -> None:
        """Raises BackboneError where the resident weights cannot be trusted any more."""
        self._patcher.check()

    def verify(self) -> Verdict:
        """Hashes the resident weights between two requests and compares with the digest taken at load."""
        with self._lock:
            digest = self.backbone.compute_digest()
        return Verdict(digest == self.backbone.resident_digest, self.backbone.fingerprint, digest)

    def check(self, recipe: CanonicalRecipe) -> None:
        """Loads and plans a recipe without running anything: what saving a merge needs to know. Raises as serving
        would.
        """
        deltas = self._deltas(recipe)
        appended_rows(list(deltas.values()))
        self._merged(recipe, deltas)

    def preview(self, recipe: CanonicalRecipe) -> tuple[Merged, Preview, float]:
        """The merge as it would be served, what its terms are like, and the seconds that building it took: few where it
        was built before. Raises as serving would.
        """
        deltas = self._deltas(recipe)
        appended_rows(list(deltas.values()))
        start = time.perf_counter()
        merged = self._merged(recipe, deltas)
        seconds = time.perf_counter() - start
        return merged, preview(list(deltas.values()), self.backbone), seconds

    def warnings(self, recipe: CanonicalRecipe | None) -> tuple[str, ...]:
        """What answers under the recipe should be read with."""
        if recipe is None:
            return ()
        kept = self.plans.peek(recipe.hash)
        if kept is not None:
            return kept.warnings
        return warnings_of(find_method(recipe.method), list(self._deltas(recipe).values()))

    def _require(self, what: str, *tasks: Task) -> None:
        if self.backbone.task not in tasks:
            raise UnsupportedTask(
                f"{self.backbone.name!r} is loaded for {self.backbone.task.value} and cannot {what}", param="model"
            )

    def _deltas(self, recipe: CanonicalRecipe | None) -> dict[str, Delta]:
        """In the recipe's order, which is that of the plan's coefficients."""
        digests = [digest for digest, _ in recipe.terms] if recipe else []
        return {digest: self.deltas.get(digest, partial(self._load, digest)) for digest in digests}

    def _batch(self, inputs: Sequence[Input], deltas: Mapping[str, Delta]) -> Batch:
        rows = appended_rows(list(deltas.values()))
        return self.inputs.batch(inputs, _tokens(deltas), max(map(len, rows.values()), default=0))

    def _merged(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Merged:
        return self.plans.get(recipe.hash, lambda: build(recipe, list(deltas.values()), self.backbone))

    def _head(self, deltas: Mapping[str, Delta], names: Mapping[str, str], asked: str | None) -> HeadModel:
        owner = choose_head(self.backbone, {names[digest]: delta for digest, delta in deltas.items()}, asked)
        if owner is None:
            return base_head(self.backbone)
        digest = next(digest for digest in deltas if names[digest] == owner)
        return self.heads.get(digest, lambda: delta_head(self.backbone, deltas[digest]))

    @contextmanager
    def _patched(self, recipe: CanonicalRecipe | None, deltas: Mapping[str, Delta]) -> Iterator[None]:
        merged = self._merged(recipe, deltas) if recipe else None
        with self._lock:
            if merged is None:
                self._patcher.check()
                yield
                return
            with self._patcher.patched(merged.plan, merged.deltas(list(deltas.values()))):
                yield


def _tokens(deltas: Mapping[str, Delta]) -> list[Token]:
    return [token for delta in deltas.values() for token in delta.manifest.tokens]
