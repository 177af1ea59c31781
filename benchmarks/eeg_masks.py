"""Which masks are easier to fill: samples of neighbouring amplitudes (AAMP), or any samples (paper, figure 7)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from patchbay.models.neuript import NeurIPTConfig, NeurIPTForPreTraining
from patchbay.models.neuript.masking import amplitude_mask
from patchbay.models.neuript.steps import Steps
from patchbay.training.files import files_in
from patchbay.training.windows import Batches, sources, split

UPDATES, SIZE, RATIO, RATE = 150, 8, 0.5, 1e-3
ONLY_MASKS = (1.0, 0.0)
JUDGED = 64  # held-out windows


def masks(data: Path, steps: Steps, cache: Path, console: Console) -> Mapping[str, Mapping[str, float]]:
    """Masked L1 of held-out windows over that of guessing zeros, after as many updates, and the seconds."""
    kept = cache / "masks.json"
    if not kept.exists():
        train, held_out = (Batches(found) for found in split(sources(files_in(data), steps), 0.2))
        found = {}
        for name in ("amplitudes", "any"):
            found[name] = _trained(name, train, held_out)
            console.print(f"masks of {name}: {found[name]}", highlight=False)
        kept.write_text(json.dumps(found), "utf-8")
    read: dict[str, dict[str, float]] = json.loads(kept.read_text("utf-8"))
    return read


def _trained(kind: str, train: Batches, held_out: Batches) -> dict[str, float]:
    torch.manual_seed(0)
    model = NeurIPTForPreTraining(NeurIPTConfig.of_size("test"))
    optimiser = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=5e-3)
    started, order = time.monotonic(), [batch for epoch in range(9) for batch in train.epoch(SIZE, epoch)]
    model.train()
    for number in range(UPDATES):
        batch = train.of(order[number])
        generator = torch.Generator().manual_seed(number)
        hidden = _hidden(kind, batch["signal"], generator)
        drawn = {"hidden": hidden, "generator": generator, "shares": ONLY_MASKS}
        loss = model(batch["signal"], batch["positions"], **drawn).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    seconds = time.monotonic() - started
    return {"of_zero": _judged(kind, model, held_out), "seconds": seconds, "updates": UPDATES}


@torch.no_grad()
def _judged(kind: str, model: NeurIPTForPreTraining, held_out: Batches) -> float:
    model.train(False)
    errors = zeros = 0.0
    for first in range(0, min(JUDGED, len(held_out)), SIZE):
        batch = held_out.of(range(first, min(first + SIZE, len(held_out))))
        generator = torch.Generator().manual_seed(first)
        hidden = _hidden(kind, batch["signal"], generator)
        output = model(batch["signal"], batch["positions"], hidden=hidden, generator=generator, shares=ONLY_MASKS)
        errors += float((output.reconstruction - batch["signal"])[hidden].abs().sum())
        zeros += float(batch["signal"][hidden].abs().sum())
    return errors / zeros


def _hidden(kind: str, signal: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if kind == "amplitudes":
        return amplitude_mask(signal, RATIO, generator)
    return amplitude_mask(torch.rand(signal.shape, generator=generator), RATIO, generator)
