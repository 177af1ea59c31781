"""`adapter_config.json` of PEFT: what of it is understood, and a refusal that names everything else.

Knows nothing of tensors but their rank. The file's own opinion on which base it is for is not asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from patchbay.errors import FinetuneMismatch

# Says how the adapter was trained or where it came from: what it does to the weights follows from its tensors alone.
_NEUTRAL = frozenset(
    {
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",  # the base's own layout decides, as it does in PEFT
        "feedforward_modules",  # (IA)^3's vectors say by their shape whether they scale inputs
        "inference_mode",
        "init_ia3_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
    }
)
_REASONS: Mapping[str, str] = {
    "alora_invocation_tokens": "it changes the weights for some tokens of a prompt only",
    "arrow_config": "it chooses between adapters for every token",
    "eva_config": "its initialisation may have changed the base weights",
    "corda_config": "its initialisation may have changed the base weights",
    "lora_ga_config": "its initialisation may have changed the base weights",
    "loftq_config": "its initialisation changed the base weights",
    "layer_replication": "it repeats layers, so that the model is another one than the base",
    "megatron_config": "its tensors are slices of parallel layers",
    "target_parameters": "it adapts packed parameters, which have no module of their own",
    "trainable_token_indices": "it trains single rows of the embedding: merge it with PEFT first",
    "use_qalora": "it was trained on a quantised base",
}
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")


class AdapterConfig(BaseModel):
    """The understood part. Unknown keys are kept apart and must be off (null, false or empty)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA", "IA3"]
    task_type: str | None = None
    auto_mapping: dict[str, Any] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | str = True
    lora_alpha: FiniteFloat = 8
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    r: int = Field(default=8, ge=1)
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_dora: bool = False
    use_rslora: bool = False

    def scaling(self, module: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA, of the module with that name and that many rows of A.

        Raises FinetuneMismatch where the config says another rank.
        """
        said = _by_pattern(self.rank_pattern, module, self.r, "rank_pattern")
        if said != rank:
            raise FinetuneMismatch(f"the adapter of {module!r} has rank {rank}, its config says {said}", param=module)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha, "alpha_pattern")
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(raw: Mapping[str, Any]) -> AdapterConfig:
    """Raises FinetuneMismatch that names the first key which is not understood, and why."""
    kind = raw.get("peft_type")
    if kind not in ("LORA", "IA3"):
        raise _refusal("peft_type", kind, "only LoRA and (IA)^3 are known to be a change of the base's weights")
    try:
        config = AdapterConfig.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _refusal(key.partition(".")[0], first["input"], first["msg"]) from error
    for key, value in (config.model_extra or {}).items():
        if key not in _NEUTRAL and value not in (None, False, {}, [], ""):
            raise _refusal(key, value, _REASONS.get(key, "what it does to the weights is not known"))
    if config.init_lora_weights not in _PLAIN_INITS:
        reason = "it may have changed the base weights: convert the adapter to plain LoRA with PEFT first"
        raise _refusal("init_lora_weights", config.init_lora_weights, reason)
    return config


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float, key: str) -> float:
    """PEFT's rule: the first pattern that the end of the module's name matches."""
    for pattern, value in (patterns or {}).items():
        if _may_never_finish(pattern):
            raise _refusal(key, pattern, "a pattern with that many repetitions or groups may never finish")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise _refusal(key, pattern, str(error)) from error
    return default


def _may_never_finish(pattern: str) -> bool:
    """A repeated group, or one after the other of repetitions or groups, can take exponential time to match."""
    repetitions = sum(pattern.count(character) for character in "*+?{")
    return bool(re.search(r"\)[*+?{]", pattern)) or repetitions > 3 or pattern.count("(") > 3


def _refusal(key: str, value: object, reason: str) -> FinetuneMismatch:
    text = repr(value)
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return FinetuneMismatch(f"adapter_config.json has {key} {shown}, which is refused: {reason}", param=key)
