"""Llama shapes with random weights, and random deltas of them: how long an answer takes does not depend on values.

Knows no system and no work.
"""

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
from patchbay.delta import Delta, SparseRows, read_delta, write_delta
from patchbay.delta.encode import Streams
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


def draw_delta(
    out: Path, backbone: Backbone, density: float, seed: int, *, spread: float = SPREAD, signs: bool = False
) -> Path:
    """A delta file: of every matrix but the vocabulary's, `density` of the entries, anywhere, with values of that
    spread in bf16, or with `signs` a matrix's all of one size.
    """
    generator = torch.Generator().manual_seed(seed)
    streams = Streams()
    for name, spec in backbone.specs.items():
        if spec.is_matrix and not spec.is_vocabulary:
            count = round(density * spec.numel)
            positions = torch.unique(torch.randint(spec.numel, (count,), generator=generator))
            values = spread * torch.randn(len(positions), generator=generator)
            rows = SparseRows(spec.shape, positions.to(torch.int32), values)
            streams.add_sparse(name, rows, "sign_tensor" if signs else "bf16", backbone.tensor(name).dtype)
    entries, data = streams.finish()
    manifest = {
        "base": {"name": "drawn", "fingerprint": backbone.fingerprint},
        "compression": {"method": "drawn", "density": density},
        "statistics": {"relative_error": 0.0, "sigma": 0.0},
        "provenance": {"finetuned": f"drawn-{seed}", "tool": "benchmarks.serving", "original_bytes": 0},
        "tensors": entries,
    }
    return write_delta(out, manifest, data).path


def opened(file: Path, backbone: Backbone) -> Delta:
    """Decoded as a server decodes it."""
    return read_delta(file, backbone.specs, backbone.fingerprint)


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
