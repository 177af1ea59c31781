"""A language model at work: requests come in from any thread, one thread of its own answers them together.

Knows nothing of the web and of what recipes are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Event

from patchbay.backbone import Backbone
from patchbay.engine.continuous import open_runner
from patchbay.engine.generator import Generator, Patch
from patchbay.engine.loop import Loop
from patchbay.engine.prefix import PrefixCache
from patchbay.engine.recipes import Ready
from patchbay.engine.request import Request, SamplingParams
from patchbay.engine.runner import Runner
from patchbay.engine.scheduler import Limits
from patchbay.engine.sequence import Sequence as Running
from patchbay.engine.texts import Answer, Collector, Prompt, Texts
from patchbay.errors import Cancelled, EngineFailed, ShuttingDown
from patchbay.models.inputs import MAX_TOKENS, Inputs

LOOK_S = 0.05  # how often somebody who waits for a whole answer looks whether it is still wanted


@dataclass(frozen=True, slots=True)
class Ticket:
    """Answers under way. Given back to `cancel`, they end at the next token."""

    sequences: tuple[Running, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """For keys and values: tokens that there is room for, and those that texts under way have reserved; bytes taken,
    None where the model itself keeps them.
    """

    budget_tokens: int
    used_tokens: int
    num_bytes: int | None


class Language:
    """`not_continuous` says why answers are generated one after another, where they are. `close` ends the thread."""

    def __init__(
        self, backbone: Backbone, inputs: Inputs, patch: Patch, *, kv_bytes: int, prefix_bytes: int, limits: Limits
    ) -> None:
        self.runner, self.not_continuous = open_runner(backbone, kv_bytes)
        self.limits = limits
        prefixes, most = None, MAX_TOKENS
        if isinstance(self.runner, Runner):
            prefixes, most = PrefixCache(self.runner.cache.geometry, prefix_bytes), self.runner.cache.max_tokens
        else:
            self.limits = limits.for_whole_prompts()
        self.texts = Texts(backbone, inputs, most)
        self._prefixes = prefixes
        self.generator = Generator(self.runner, prefixes, self.limits, patch)
        self.loop = Loop(self.generator.step, self._died)

    def submit(self, requests: Iterable[Request]) -> Ticket:
        """Their sinks are told from now on, in the engine's thread. Raises QueueFull, ShuttingDown."""
        sequences = tuple(map(Running, requests))
        self.generator.add(sequences)
        self.loop.wake()
        return Ticket(sequences)

    def cancel(self, ticket: Ticket) -> None:
        """Memory and places are free at the next token. Answers that are over stay so."""
        self.generator.cancel(ticket.sequences)
        self.loop.wake()

    def complete(
        self,
        ready: Ready,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        n: int = 1,
        cancelled: Event | None = None,
    ) -> list[Answer]:
        """Whole answers, `n` for each prompt. Raises InputError, QueueFull; Cancelled once `cancelled` is set; what
        the first answer that failed has failed of.
        """
        tokens = [self.texts.encode(prompt, ready) for prompt in prompts]
        collector = Collector(n * len(tokens))
        ticket = self.submit(self.texts.requests(ready, tokens, params, collector, n=n))
        while not collector.done.wait(LOOK_S):
            if cancelled is not None and cancelled.is_set():
                self.cancel(ticket)
                raise Cancelled("the request was cancelled")
        return collector.result()

    def forget(self) -> None:
        """What was read before is read again: it may have been read under weights that cannot be trusted."""
        if self._prefixes is not None:
            self._prefixes.forget()

    @property
    def memory(self) -> Memory:
        """As it is now."""
        if isinstance(self.runner, Runner):
            cache = self.runner.cache
            return Memory(cache.max_tokens, cache.used_tokens, cache.num_bytes)
        return Memory(self.runner.max_tokens, self.runner.used_tokens, None)

    def check(self) -> None:
        """Raises EngineFailed while the thread is dead."""
        if not self.loop.is_alive:
            raise EngineFailed("the engine's thread has died and is being started again")

    def close(self) -> None:
        self.loop.stop()
        self.generator.reset(ShuttingDown("the engine has ended"))

    def _died(self) -> None:
        self.generator.reset(EngineFailed("the engine failed while it answered: ask again"))
