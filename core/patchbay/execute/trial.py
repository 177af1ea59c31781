"""Inputs that mean nothing, for whoever tries something on a model: the least that it takes.

Knows nothing of what is tried.
"""

from __future__ import annotations

import torch

from patchbay.architecture import Task
from patchbay.backbone import Backbone

IMAGE = 32  # pixels a side, where a model takes any
CHANNELS, RADIUS_MM = 5, 80.0
SAMPLES = 16  # of a signal, for each token of a text


def trial_inputs(backbone: Backbone, rows: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """`rows` of them; texts of `length` tokens, signals in proportion."""
    generator = torch.Generator().manual_seed(seed)
    model = backbone.model
    if model.main_input_name == "pixel_values":
        made = {"pixel_values": _pixels(backbone, rows, generator).to(model.dtype)}
    elif model.main_input_name == "signal":
        made = _signals(rows, length, generator)
    else:
        vocabulary = next(spec.shape[0] for spec in backbone.specs.values() if spec.is_vocabulary)
        made = {"input_ids": torch.randint(vocabulary, (rows, length), generator=generator)}
    if backbone.task is Task.SEQ2SEQ_LM:
        made["decoder_input_ids"] = made["input_ids"][:, : length // 2]
    return {name: tensor.to(backbone.device) for name, tensor in made.items()}


def _pixels(backbone: Backbone, rows: int, generator: torch.Generator) -> torch.Tensor:
    config = backbone.architecture.config
    size = getattr(config, "image_size", IMAGE)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(rows, config.num_channels, height, width, generator=generator)


def _signals(rows: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Channels anywhere on a ball, each in one lobe."""
    places = torch.randn(rows, CHANNELS, 3, generator=generator)
    return {
        "signal": torch.randn(rows, CHANNELS, SAMPLES * length, generator=generator),
        "positions": RADIUS_MM * places / places.norm(dim=-1, keepdim=True),
        "lobes": torch.eye(CHANNELS, dtype=torch.bool).expand(rows, -1, -1),
    }
