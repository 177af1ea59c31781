"""transformers' own continuous batching, which serves one set of weights: the yardstick for base-only traffic."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.systems.base import Ask, Served, System, num_bytes

PAGE = 32
PAGES = 512
MAX_STEP = 256


class Manager(System):
    """Sizes are fixed: left to itself it takes most of the machine's free memory."""

    name = "transformers' manager"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("sdpa")
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=PAGES,
            max_batch_tokens=MAX_STEP,
            max_requests_per_batch=16,
            use_cuda_graph=False,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        self._manager: Any = self.model.init_continuous_batching(  # type: ignore[operator]
            generation_config=generation, continuous_batching_config=config
        )
        self._manager.start()
        self._served = 0

    def serve(self, asks: Sequence[Ask]) -> list[Served]:
        start = time.perf_counter()
        names = {}
        for number in sorted(range(len(asks)), key=lambda number: asks[number].at):
            ask = asks[number]
            time.sleep(max(0.0, ask.at - (time.perf_counter() - start)))
            self._served += 1
            name = f"r{self._served}"
            names[name] = number
            self._manager.add_request(list(ask.prompt), request_id=name, max_new_tokens=ask.max_tokens, streaming=True)
        found = [Served() for _ in asks]
        left = len(asks)
        while left:
            output = self._manager.get_result(timeout=60)
            if output is None:
                raise RuntimeError("the manager gave no result within a minute")
            served = found[names[output.request_id]]
            now = time.perf_counter() - start
            served.times.extend([now] * (len(output.generated_tokens) - len(served.tokens)))
            served.tokens = list(output.generated_tokens)
            left -= output.is_finished()
        return found

    @property
    def resident_bytes(self) -> int:
        return num_bytes(self.model)

    def close(self) -> None:
        self._manager.stop(block=True)
