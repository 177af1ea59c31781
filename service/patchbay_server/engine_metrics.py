"""Metrics of what the engine does, under vLLM's names where it has them, so that its dashboards work as they are.

Knows nothing of HTTP. `model_name` is the base's name, whatever recipe answered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from patchbay.engine.engine import LANGUAGE, Engine
from patchbay.engine.language import Language
from patchbay.engine.observer import Observer
from patchbay.engine.recipes import Ready
from patchbay.engine.sequence import Sequence
from patchbay.merge import CanonicalRecipe
from patchbay_server.names import UnderWay
from patchbay_server.read_metrics import ReadCounter, ReadSeries

MODEL = "model_name"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
Read = Callable[[Language], float]
_GAUGES: dict[str, tuple[str, Read]] = {
    "vllm:num_requests_running": (
        "Texts under way: they have memory for their keys and values.",
        lambda language: len(language.generator.scheduler.running),
    ),
    "vllm:num_requests_waiting": (
        "Texts that wait for memory for their keys and values.",
        lambda language: len(language.generator.scheduler.waiting),
    ),
    "vllm:kv_cache_usage_perc": (
        "Share of the memory for keys and values that is reserved; 1 is all of it.",
        lambda language: language.memory.used_tokens / language.memory.budget_tokens,
    ),
}
_COUNTERS: dict[str, tuple[str, Read]] = {
    "vllm:prefix_cache_queries": (
        "Prompt tokens whose keys and values were looked up.",
        lambda language: language.generator.counts.asked_tokens,
    ),
    "vllm:prefix_cache_hits": (
        "Prompt tokens whose keys and values were known.",
        lambda language: language.generator.counts.prefix_tokens,
    ),
    "vllm:prompt_tokens": (
        "Prompt tokens, read or known.",
        lambda language: language.generator.counts.prompt_tokens + language.generator.counts.prefix_tokens,
    ),
    "vllm:generation_tokens": ("Tokens of answers.", lambda language: language.generator.counts.generated_tokens),
}


class EngineMetrics(Observer):
    """Told by the engine, but for what it counts itself. Without values where the base writes no text."""

    def __init__(self, engine: Engine, registry: CollectorRegistry) -> None:
        self._registry, self._model = registry, engine.backbone.name
        self._language = engine.language if engine.backbone.task in LANGUAGE else None
        for name, (text, read) in _GAUGES.items():
            self._show(Gauge(name, text, [MODEL], registry=registry), self._model, read)
        for name, (text, read) in _COUNTERS.items():
            self._show(ReadCounter(name, text, [MODEL], registry=registry), self._model, read)
        self._steps = Counter("patchbay_steps", "Forward passes.", ["path"], registry=registry)
        died = "Times that the thread that writes texts died and was started again."
        restarts = ReadCounter("patchbay_engine_restarts", died, registry=registry)
        restarts.set_function(lambda: self._language.loop.restarts if self._language else 0)
        self._first = self._seconds("vllm:time_to_first_token_seconds", "From the request to its first token.")
        self._each = self._seconds("vllm:inter_token_latency_seconds", "From a token to the next.")
        self._whole = self._seconds("vllm:e2e_request_latency_seconds", "From the request to its end.")
        self._queue = self._seconds("vllm:request_queue_time_seconds", "From the request until it had memory.")
        self._prefill = self._seconds("vllm:request_prefill_time_seconds", "From there to its first token.")
        self._decode = self._seconds("vllm:request_decode_time_seconds", "From there to its end.")
        self._read = self._tokens("vllm:request_prompt_tokens", "Tokens of a text's prompt.")
        self._written = self._tokens("vllm:request_generation_tokens", "Tokens of a text's answer.")
        ended = "Texts that are over, by how they ended."
        self._ended = Counter("vllm:request_success", ended, [MODEL, "finished_reason"], registry=registry)
        self._sequences = self._sizes(
            "patchbay_step_sequences", "Texts, or parts of requests to an encoder, in a forward pass."
        )
        self._recipes = self._sizes("patchbay_step_recipes", "Recipes in a forward pass.")
        self._deltas = self._sizes("patchbay_step_deltas", "Deltas in a forward pass.")
        made, came = "Time to make a plan.", "Time to read and decode a delta that was not in memory."
        self._plans = Histogram("patchbay_plan_build_seconds", made, ["method"], buckets=SECONDS, registry=registry)
        self._loads = Histogram("patchbay_delta_load_seconds", came, buckets=SECONDS, registry=registry)
        self._under_way = UnderWay(engine) if self._language else None
        self._show_names()

    def stepped(self, is_patched: bool, readies: Collection[Ready]) -> None:
        self._steps.labels("patched" if is_patched else "decoupled").inc()
        self._sequences.observe(len(readies))
        self._recipes.observe(len({ready.key for ready in readies}))
        self._deltas.observe(len({digest for ready in readies for digest in ready.deltas}))

    def produced(self, sequence: Sequence) -> None:
        is_first = len(sequence.draws.answer) == 1
        (self._first if is_first else self._each).labels(self._model).observe(sequence.waited)

    def finished(self, sequence: Sequence) -> None:
        self._ended.labels(self._model, sequence.ended).inc()
        for histogram, start, end in (
            (self._whole, sequence.arrived, sequence.over),
            (self._queue, sequence.arrived, sequence.admitted),
            (self._prefill, sequence.admitted, sequence.first),
            (self._decode, sequence.first, sequence.over),
        ):
            if start is not None and end is not None:
                histogram.labels(self._model).observe(end - start)
        self._read.labels(self._model).observe(len(sequence.request.prompt))
        self._written.labels(self._model).observe(len(sequence.draws.answer))

    def loaded(self, digest: str, seconds: float) -> None:
        self._loads.observe(seconds)

    def built(self, recipe: CanonicalRecipe, seconds: float) -> None:
        self._plans.labels(recipe.method).observe(seconds)

    def note(self, ready: Ready, label: str) -> None:
        """A request under this name runs as `ready`."""
        if self._under_way is not None:
            self._under_way.note(ready, label)

    def _show_names(self) -> None:
        text = "Names of deltas and saved merges that texts under way are written under; the value is the unix time."
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        names = ReadSeries("vllm:lora_requests_info", text, labels, registry=self._registry)
        names.set_series(self._under_way.read if self._under_way else tuple)

    def _show(self, metric: Gauge | ReadCounter, label: str, read: Read) -> None:
        if self._language is not None:
            metric.labels(label).set_function(partial(read, self._language))

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, [MODEL], buckets=SECONDS, registry=self._registry)

    def _tokens(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, [MODEL], buckets=TOKENS, registry=self._registry)

    def _sizes(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=SIZES, registry=self._registry)
