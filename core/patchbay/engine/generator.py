"""Text for many requests at once: their tokens, under whatever recipes, go through the model together.

One thread calls `step`; others add and cancel. Knows nothing of the web and of how recipes are made ready.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Tokens
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock

import torch

from patchbay.engine.observer import Observer
from patchbay.engine.prefix import PrefixCache
from patchbay.engine.recipes import Ready
from patchbay.engine.runner import Piece, Runner
from patchbay.engine.sampler import is_sound, logprob_of, sample
from patchbay.engine.scheduler import TURN_STEPS, Limits, Scheduler, Turn
from patchbay.engine.sequence import Sequence
from patchbay.engine.solo import SoloRunner
from patchbay.errors import BackboneError, Cancelled, DeadlineExceeded, NonFiniteValue, PatchbayError

logger = logging.getLogger(__name__)
Patch = Callable[[Ready | None], AbstractContextManager[None]]


@dataclass(slots=True)
class Counts:
    """Since the start. `prompt_tokens` were read by a forward pass, and `prefix_tokens` were known, of `asked_tokens`
    that could have been.
    """

    prompt_tokens: int = 0
    asked_tokens: int = 0
    prefix_tokens: int = 0
    generated_tokens: int = 0


class Generator:
    """`patch(ready)` holds the weights for one turn: patched with the recipe, or the base's where that is None."""

    def __init__(self, runner: Runner | SoloRunner, prefixes: PrefixCache | None, limits: Limits, patch: Patch) -> None:
        self.counts = Counts()
        self.observer = Observer()
        self.scheduler = Scheduler(limits, runner.reserve)
        self._runner, self._prefixes, self._patch = runner, prefixes, patch
        self._lock = Lock()  # of the scheduler's queue
        self._stopped: PatchbayError | None = None
        self._draining: PatchbayError | None = None

    def add(self, sequences: Tokens[Sequence]) -> None:
        """All of them or none. Raises QueueFull, and what the generator was drained or stopped with."""
        with self._lock:
            if error := self._stopped or self._draining:
                raise error
            self.scheduler.add(sequences)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """They end at the next step, and nobody is told: who cancels does not listen."""
        for sequence in sequences:
            sequence.is_cancelled = True

    def drain(self, error: PatchbayError) -> None:
        """Nothing new is taken, which fails with `error`; what is under way and waiting goes on."""
        with self._lock:
            self._draining = error

    def stop(self, error: PatchbayError) -> None:
        """Everything under way and waiting ends with `error` at the next step, and nothing new is taken."""
        self._stopped = error

    def reset(self, error: PatchbayError) -> None:
        """The same at once, and goes on with nothing: when the thread that stepped is dead."""
        with self._lock:
            sequences = [*self.scheduler.running, *self.scheduler.waiting]
            self.scheduler = Scheduler(self.scheduler.limits, self._runner.reserve)
        self._runner.reset()
        self._fail(sequences, error)
        for sequence in sequences:
            self.observer.finished(sequence)

    def step(self) -> bool:
        """One turn: a forward pass, or several in a row where weights are patched for them. False where nothing is to
        be done.
        """
        self._enter()
        turn = self.scheduler.turn()
        chosen = self.scheduler.schedule(turn)
        if not chosen:
            return False
        try:
            with self._patch(None if turn is None else chosen[0][0].request.ready):
                self._advance(turn, chosen)
                for _ in range(0 if turn is None else TURN_STEPS - 1):
                    self._enter()
                    if self.scheduler.turn() != turn or not (chosen := self.scheduler.schedule(turn)):
                        break
                    self._advance(turn, chosen)
        except Exception as error:  # the weights cannot be had: nobody of this group can go on
            if not isinstance(error, PatchbayError):
                logger.exception("a group of requests failed")
            self._fail([sequence for sequence, _ in chosen], _as_ours(error))
        return True

    def _enter(self) -> None:
        """Those who gave up leave, and others come in for them."""
        with self._lock:
            everyone = [*self.scheduler.running, *self.scheduler.waiting]
        for sequence in everyone:
            if self._stopped is not None:
                sequence.fail(self._stopped)
            elif sequence.is_cancelled:
                sequence.fail(Cancelled("the request was cancelled"))
            elif sequence.is_late:
                sequence.fail(DeadlineExceeded("the request's time is over: it was given up"))
        self._leave([sequence for sequence in everyone if sequence.is_over])
        with self._lock:
            admitted = self.scheduler.admit()
        for sequence in admitted:
            sequence.admitted = time.monotonic()
            if self._prefixes and not sequence.wants_prompt:  # whose probabilities only a forward pass gives
                tokens = sequence.request.prompt[:-1]  # the last one is read: its logits are the first answer's
                sequence.computed = self._prefixes.restore(sequence.request.ready.prefix_key, tokens, sequence.place)
                self.counts.asked_tokens += len(tokens)
                self.counts.prefix_tokens += sequence.computed

    def _advance(self, turn: Turn, chosen: list[tuple[Sequence, int]]) -> None:
        self.observer.stepped(turn is not None, [sequence.request.ready for sequence, _ in chosen])
        self._forward(chosen)

    def _forward(self, chosen: list[tuple[Sequence, int]]) -> None:
        """Where the pass fails, each half tries by itself: whoever is at fault fails alone. What was kept of a token is
        written again, so that trying twice is as good as once.
        """
        pieces = [_piece(sequence, count) for sequence, count in chosen]
        try:
            logits = self._runner.run(pieces)
        except Exception as error:  # whatever the model or a hook on it raises
            if len(chosen) > 1:
                middle = len(chosen) // 2
                self._forward(chosen[:middle])
                self._forward(chosen[middle:])
                return
            logger.exception("a request failed in the model")
            self._fail([chosen[0][0]], _as_ours(error))
            return
        self._take([sequence for sequence, _ in chosen], pieces, logits)

    def _take(self, sequences: list[Sequence], pieces: list[Piece], logits: torch.Tensor) -> None:
        last: list[Sequence] = []
        places: list[int] = []  # of their rows
        end = 0
        for sequence, piece in zip(sequences, pieces, strict=True):
            found, end = logits[end : end + piece.wanted], end + piece.wanted
            was_prompt = not sequence.draws.answer
            sequence.computed += len(piece.tokens)
            if was_prompt:
                self.counts.prompt_tokens += len(piece.tokens)
                _note_prompt(sequence, piece, found)
            if sequence.computed == sequence.num_tokens:
                last.append(sequence)
                places.append(end - 1)
        if last:
            self._sample(last, logits if len(places) == len(logits) else logits[places])

    def _sample(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        """The next token of each, from its row."""
        sound = is_sound(logits)
        message = "the model's output is not finite under this recipe: use smaller weights"
        bad = [sequence for sequence, fine in zip(sequences, sound, strict=True) if not fine]
        self._fail(bad, NonFiniteValue(message, param="model"))
        asking = []
        for number, (sequence, fine) in enumerate(zip(sequences, sound, strict=True)):
            if fine and self._prefixes and not sequence.draws.answer:
                self._prefixes.keep(sequence.request.ready.prefix_key, sequence.request.prompt, sequence.place)
            if fine and sequence.request.params.max_tokens:
                asking.append(number)
            elif fine:
                sequence.end_without_answer()
        if asking:
            rows = logits if len(asking) == len(logits) else logits[asking]
            self._accept([sequences[number] for number in asking], rows)

    def _accept(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        for sequence, token in zip(sequences, sample(logits, [sequence.draws for sequence in sequences]), strict=True):
            self.counts.generated_tokens += 1
            sequence.accept(token)
            self.observer.produced(sequence)

    def _fail(self, sequences: Iterable[Sequence], error: PatchbayError) -> None:
        for sequence in sequences:
            sequence.fail(error)

    def _leave(self, sequences: Iterable[Sequence]) -> None:
        gone = list(sequences)
        if not gone:
            return
        with self._lock:
            self.scheduler.remove(gone)
        for sequence in gone:
            if sequence.place is not None:
                self._runner.free(sequence.place, is_finite=not sequence.has_failed)
                sequence.place = None
            self.observer.finished(sequence)


def _piece(sequence: Sequence, count: int) -> Piece:
    tokens = sequence.next_tokens(count)
    ends = sequence.computed + len(tokens) == sequence.num_tokens
    wanted = len(tokens) if sequence.wants_prompt and not sequence.draws.answer else int(ends)
    return Piece(sequence.place, tokens, sequence.computed, sequence.request.ready.active, wanted)


def _note_prompt(sequence: Sequence, piece: Piece, logits: torch.Tensor) -> None:
    """Each row tells of the prompt's next token; the last one's may be the answer's first."""
    count = sequence.request.params.prompt_logprobs
    if count is None:
        return
    prompt, start = sequence.request.prompt, piece.start + 1
    following = prompt[start : start + len(piece.tokens)]
    sequence.read([logprob_of(row, token, count) for row, token in zip(logits, following, strict=False)])


def _as_ours(error: Exception) -> PatchbayError:
    if isinstance(error, PatchbayError):
        return error
    return BackboneError("the model failed on this request; the server's log says why")
