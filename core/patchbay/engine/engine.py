"""Answers requests on one backbone. Knows nothing of the web, the store and names of deltas.

`load` gives the decoded delta behind a digest; everything here is keyed by digests and recipe hashes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from patchbay.architecture import CLASSIFIERS, Task
from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.engine.encoders import Encoders
from patchbay.engine.integrity import Integrity
from patchbay.engine.language import Language
from patchbay.engine.lock import FairLock
from patchbay.engine.observer import Observer
from patchbay.engine.patience import FOREVER, Patience
from patchbay.engine.pool import Pool
from patchbay.engine.recipes import Load, Path, Ready, Recipes
from patchbay.engine.runner import Runner
from patchbay.engine.scheduler import Limits
from patchbay.errors import ShuttingDown, UnsupportedTask
from patchbay.execute.break_even import break_even_bytes, merged_from
from patchbay.execute.patch import Patcher
from patchbay.execute.prove import Proof, prove
from patchbay.execute.wrap import wrap
from patchbay.merge import CanonicalRecipe, Merged, find_method
from patchbay.merge.preview import Preview, preview, warnings_of
from patchbay.models.classifier import Classification, Logits, check_classifier, classifications
from patchbay.models.embedding import Embedded, UnitVectors, embedded
from patchbay.models.heads import HeadModel, base_head, choose_head, delta_head
from patchbay.models.inputs import Batch, Input, Inputs, num_tokens

LANGUAGE = (Task.CAUSAL_LM, Task.SEQ2SEQ_LM)
Admit = Callable[[int], object]


def everybody(tokens: int) -> None:
    """Admits texts of any length."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes: of decoded deltas, and again of what they are compiled to; of plans and merged deltas; of keys and values
    of texts under way, and of texts that came before.
    """

    deltas: int = 4 << 30
    plans: int = 1 << 30
    kv: int = 1 << 30
    prefixes: int = 1 << 28


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: the resident weights are bit for bit those that were loaded."""

    ok: bool
    fingerprint: str
    resident_digest: str


class Engine:
    """A language model's requests run together in a thread of its own, which `close` ends; an encoder's together in
    the thread of one of those who asked. Where `check_every` is a number of seconds, what is in memory is checked that
    often, between requests.
    """

    def __init__(
        self,
        backbone: Backbone,
        load: Load,
        *,
        budgets: Budgets | None = None,
        limits: Limits | None = None,
        check_every: float = 0,
    ) -> None:
        budgets = budgets or Budgets()
        self.backbone, self.inputs = backbone, Inputs(backbone)
        self.heads: Pool[HeadModel] = Pool(1 << 28)
        self._patcher = Patcher(backbone)
        self._lock = FairLock()  # of the resident weights
        self._draining: ShuttingDown | None = None
        self._language: Language | None = None
        wrap(backbone)
        if backbone.task in LANGUAGE:
            self._language = Language(
                backbone,
                self.inputs,
                self._patched,
                kv_bytes=budgets.kv,
                prefix_bytes=budgets.prefixes,
                limits=limits or Limits(),
            )
        self.proof = self._prove()
        if self.proof.ok:
            merged_from(backbone.device)  # measured now, and not in somebody's request
        self.encoders = Encoders(backbone, self._lock, self._weights)
        if self._language is None:
            is_plain = backbone.task is Task.EMBEDDING
            self.encoders.why_alone(UnitVectors(backbone.model) if is_plain else Logits(backbone.model))
        self.recipes = Recipes(
            backbone,
            load,
            self.proof,
            delta_bytes=budgets.deltas,
            plan_bytes=budgets.plans,
            break_even_bytes=break_even_bytes(backbone) if self.proof.ok else 0,
        )
        self.recipes.deltas.relieve = self._forget_batches
        self.integrity = Integrity(
            backbone,
            self._lock,
            (self.recipes.deltas, self.recipes.plans),
            distrust_base=self._distrust_base,
            distrust=self._distrust,
            every=check_every,
        )

    def prepare(
        self,
        recipe: CanonicalRecipe | None,
        path: Path | None = None,
        patience: Patience = FOREVER,
        salt: str = "",
    ) -> Ready:
        """Loads and merges what is missing, in the caller's thread. Raises InputError for a `path` that is not to be
        had, QueueFull where no memory comes free for it, and what loading, merging and `patience` raise. Texts that
        begin alike share what is known of their beginning only where their `salt` is one.
        """
        return self.recipes.prepare(recipe, path, patience, salt)

    @property
    def language(self) -> Language:
        """Raises UnsupportedTask where the backbone writes no text."""
        self._require("complete text", *LANGUAGE)
        assert self._language is not None
        return self._language

    def classify(
        self,
        ready: Ready,
        inputs: Sequence[Input],
        names: Mapping[str, str],
        head: str | None,
        patience: Patience = FOREVER,
        admit: Admit = everybody,
    ) -> list[Classification]:
        """Labels for every input. `names` maps the recipe's digests to the names that the caller used; `head` is such a
        name. `admit` is told how many tokens texts have before they are run, and what it raises is raised.

        Raises UnsupportedTask, AmbiguousHead, InputError, NonFiniteValue, Cancelled, DeadlineExceeded.
        """
        self._require("classify", *CLASSIFIERS, Task.EMBEDDING)
        batch = self._batch(inputs, ready)
        answering = self._head(ready.deltas, names, head)
        check_classifier(answering)
        admit(num_tokens(batch))
        return classifications(answering, self.encoders.run(Logits(answering.model), ready, batch, patience))

    def embed(
        self, ready: Ready, inputs: Sequence[Input], patience: Patience = FOREVER, admit: Admit = everybody
    ) -> Embedded:
        """Unit vectors; `admit` as in `classify`. Raises UnsupportedTask, InputError, NonFiniteValue, Cancelled,
        DeadlineExceeded.
        """
        self._require("embed", Task.EMBEDDING)
        batch = self._batch(inputs, ready)
        admit(num_tokens(batch))
        return embedded(self.encoders.run(UnitVectors(self.backbone.model), ready, batch, patience), batch)

    @property
    def path(self) -> Path:
        """How deltas are run where nothing about them speaks against it."""
        return Path.DECOUPLED if self.proof.ok else Path.PATCHED

    def observe(self, observer: Observer) -> None:
        """Tells it what happens from now on, instead of the one before."""
        self.recipes.loaded, self.recipes.built = observer.loaded, observer.built
        self.encoders.observer = observer
        if self._language is not None:
            self._language.generator.observer = observer

    def drain(self) -> None:
        """No text is begun any more; those under way go on."""
        self._draining = ShuttingDown("the server is shutting down: ask again elsewhere or later")
        if self._language is not None:
            self._language.generator.drain(self._draining)

    def stop(self) -> None:
        """Generation ends at its next token, now and from now on: the process is about to end."""
        self.drain()
        if self._language is not None and self._draining is not None:
            self._language.generator.stop(self._draining)
            self._language.loop.wake()

    def close(self) -> None:
        """Ends the engine's threads, and with them every text that is under way."""
        self.stop()
        self.integrity.stop()
        if self._language is not None:
            self._language.close()

    def check_health(self) -> None:
        """Raises BackboneError where nothing can be answered: weights that cannot be trusted, a thread that died, an
        engine that is drained.
        """
        self._patcher.check()
        if self._draining is not None:
            raise self._draining
        if self._language is not None:
            self._language.check()

    def verify(self) -> Verdict:
        """Hashes the resident weights between two requests and compares with the digest taken at load."""
        with self._lock:
            digest = self.backbone.compute_digest()
        return Verdict(digest == self.backbone.resident_digest, self.backbone.fingerprint, digest)

    def check(self, recipe: CanonicalRecipe) -> None:
        """Loads and plans a recipe without running anything: what saving a merge needs to know. Raises as serving
        would.
        """
        self.recipes.merged(recipe, self.recipes.load(recipe))

    def preview(self, recipe: CanonicalRecipe) -> tuple[Merged, Preview, float]:
        """The merge as it would be served, what its terms are like, and the seconds that building it took: few where it
        was built before. Raises as serving would.
        """
        deltas = self.recipes.load(recipe)
        start = time.perf_counter()
        merged = self.recipes.merged(recipe, deltas)
        seconds = time.perf_counter() - start
        return merged, preview(list(deltas.values()), self.backbone), seconds

    def warnings(self, recipe: CanonicalRecipe | None) -> tuple[str, ...]:
        """What answers under the recipe should be read with."""
        if recipe is None:
            return ()
        kept = self.recipes.plans.peek(recipe.hash)
        if kept is not None:
            return kept.merged.warnings
        return warnings_of(find_method(recipe.method), list(self.recipes.load(recipe).values()))

    def _forget_batches(self) -> None:
        self.encoders.forget()
        if self._language is not None and isinstance(self._language.runner, Runner):
            self._language.runner.forget()

    def _distrust_base(self) -> None:
        self._patcher.damaged = True

    def _distrust(self, key: str) -> None:
        """Nothing is kept of a delta or a merge that has changed in memory, nor of what it was used for."""
        self.heads.discard(key)
        if self._language is not None:
            self._language.forget()
        self.recipes.forget(key)

    def _prove(self) -> Proof:
        if self._language is not None and self._language.not_continuous is not None:
            return Proof(False, None, {}, self._language.not_continuous)
        return prove(self.backbone, self._patcher)

    def _require(self, what: str, *tasks: Task) -> None:
        if self.backbone.task not in tasks:
            raise UnsupportedTask(
                f"{self.backbone.name!r} is loaded for {self.backbone.task.value} and cannot {what}", param="model"
            )

    def _batch(self, inputs: Sequence[Input], ready: Ready) -> Batch:
        return self.inputs.batch(inputs, ready.tokens, ready.num_appended)

    def _head(self, deltas: Mapping[str, Delta], names: Mapping[str, str], asked: str | None) -> HeadModel:
        owner = choose_head(self.backbone, {names[digest]: delta for digest, delta in deltas.items()}, asked)
        if owner is None:
            return base_head(self.backbone)
        digest = next(digest for digest in deltas if names[digest] == owner)
        return self.heads.get(digest, lambda: delta_head(self.backbone, deltas[digest]))

    @contextmanager
    def _patched(self, ready: Ready | None) -> Iterator[None]:
        """The resident weights are this caller's: the base's, or patched where there is a recipe."""
        with self._lock, self._weights(ready):
            yield

    @contextmanager
    def _weights(self, ready: Ready | None) -> Iterator[None]:
        """The same, of a caller that has the lock."""
        if ready is None or ready.merged is None:
            self._patcher.check()
            yield
            return
        with self._patcher.patched(ready.merged.plan, ready.merged.deltas(list(ready.deltas.values()))):
            yield
