"""Llama shapes with random weights, and random deltas of them: how long an answer takes does not depend on values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.systems.base import Terms
from patchbay.backbone import Backbone
from patchbay.delta import Delta, Manifest, SparseRows
from patchbay.execute.patch import Patcher
from patchbay.merge import CanonicalRecipe, MergePlan, Recipe, Term, build_plan, settled

VOCABULARY = 32_000
# hidden, inner, layers, heads
SHAPES: Mapping[str, tuple[int, int, int, int]] = {
    "2M": (64, 128, 2, 2),
    "26M": (384, 1024, 8, 6),
    "110M": (768, 2048, 12, 12),
}
SPREAD = 5e-3  # of a delta's entries; the weights' is .02


def make_base(name: str, folder: Path, dtype: torch.dtype) -> Path:
    """A folder with the shape's weights; made once."""
    out = folder / f"{name}-{str(dtype).removeprefix('torch.')}"
    if not (out / "tokenizer.json").is_file():
        hidden, inner, layers, heads = SHAPES[name]
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.save_pretrained(out)
        words = Tokenizer(WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(out)  # type: ignore[no-untyped-call]
    return out


def draw_delta(backbone: Backbone, density: float, seed: int, spread: float = SPREAD) -> Delta:
    """Of every matrix but the vocabulary's, `density` of the entries, anywhere, with values of that spread."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, SparseRows] = {}
    for name, spec in backbone.specs.items():
        if spec.is_matrix and not spec.is_vocabulary:
            count = round(density * spec.numel)
            positions = torch.unique(torch.randint(spec.numel, (count,), generator=generator))
            values = spread * torch.randn(len(positions), generator=generator)
            rows[name] = SparseRows(spec.shape, positions.to(torch.int32), values)
    manifest = Manifest.model_validate(
        {
            "format_version": 2,
            "base": {"name": "drawn", "fingerprint": backbone.fingerprint},
            "compression": {"method": "magnitude", "density": density},
            "statistics": {"relative_error": 0.0, "sigma": 0.0},
            "provenance": {"finetuned": f"drawn-{seed}", "tool": "benchmarks.serving", "original_bytes": 0},
            "tensors": {},
            "payload_sha256": backbone.fingerprint,
        }
    )
    return Delta(manifest, rows, {}, {}, {}, {})


def recipe(terms: Terms) -> CanonicalRecipe | None:
    """A weighted sum of deltas, whose digests are their numbers."""
    if not terms:
        return None
    written = Recipe(method="task_arithmetic", terms=tuple(Term(delta=f"d{n}", weight=w) for n, w in terms))
    return settled(written, {f"d{n}": str(n) for n, _ in terms})


def plan(backbone: Backbone, deltas: Mapping[str, Delta], terms: Terms) -> tuple[MergePlan, list[Delta]]:
    canonical = recipe(terms)
    assert canonical is not None
    chosen = [deltas[digest] for digest, _ in canonical.terms]
    return build_plan(canonical, chosen, backbone), chosen


@contextmanager
def merged(backbone: Backbone, deltas: Mapping[str, Delta], terms: Terms) -> Iterator[None]:
    """The backbone is the fine-tune, or the merge, inside."""
    if not terms:
        yield
        return
    made, chosen = plan(backbone, deltas, terms)
    with Patcher(backbone).patched(made, chosen):
        yield
