from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from patchbay.models.neuript import NeurIPTConfig, NeurIPTForPreTraining, NeurIPTModel
from patchbay.models.neuript.config import axis_widths
from patchbay.models.neuript.moe import ExpertFeedForward


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(model: type[nn.Module], config: NeurIPTConfig) -> nn.Module:
    with torch.device("meta"):
        return model(config)


def test_the_paper_has_its_numbers_of_parameters() -> None:
    """92.2 M; and 73.3 M that one token meets, the paper's 73.5 M without the head."""
    model = on_meta(NeurIPTModel, NeurIPTConfig.paper())
    assert count(model) == 92_212_000
    idle = sum(
        count(expert)
        for layer in model.modules()
        if isinstance(layer, ExpertFeedForward)
        for expert in list(layer.experts)[layer.num_chosen :]
    )
    assert count(model) - idle == 73_308_960


def test_pre_training_has_a_decoder_and_the_masks_token_more() -> None:
    model = on_meta(NeurIPTForPreTraining, NeurIPTConfig.paper())
    assert isinstance(model, NeurIPTForPreTraining)
    assert count(model.decoder) == 86_897_671
    assert count(model) == 92_212_000 + 86_897_671 + 768


@pytest.mark.parametrize(("size", "expected"), [("small", 1_462_656), ("medium", 5_800_672)])
def test_sizes(size: str, expected: int) -> None:
    assert count(on_meta(NeurIPTModel, NeurIPTConfig.of_size(size))) == expected


@pytest.mark.parametrize("size", ["test", "small", "medium", "paper"])
def test_experts_of_every_block(size: str) -> None:
    """(q) and (v): both layers of a block have as many; half of them, rounded up, run; none means no router."""
    config = NeurIPTConfig.of_size(size)
    model = on_meta(NeurIPTModel, config)
    assert isinstance(model, NeurIPTModel)
    for block, experts in zip(model.blocks, config.experts, strict=True):
        layers = [layer for layer in block.modules() if isinstance(layer, ExpertFeedForward)]
        assert [len(layer.experts) for layer in layers] == [experts] * (2 if experts else 0)
        assert [layer.num_chosen for layer in layers] == [-(-experts // 2)] * len(layers)
        assert any("router" in name for name, _ in block.named_parameters()) == bool(experts)


@pytest.mark.parametrize(("width", "parts"), [(768, (256, 256, 256)), (256, (84, 84, 88)), (96, (32, 32, 32))])
def test_how_a_width_splits_into_axes(width: int, parts: tuple[int, ...]) -> None:
    assert axis_widths(width) == parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 50}, "4 heads do not divide"),
        ({"hidden_size": 5, "num_heads": 1}, "three even parts"),
        ({"merges": (1, 2)}, "2 merges and 6 experts"),
        ({"merges": (), "experts": ()}, "0 merges"),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeurIPTConfig.of_size("test", **changes)


def test_a_folder_is_read_by_its_type(tmp_path: Path) -> None:
    config = NeurIPTConfig.of_size("test", num_labels=3, label_priors=[0.2, 0.3, 0.5], gate_norm="all")
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, NeurIPTConfig)
    assert {**read.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert (read.num_blocks, read.num_pooled_levels, read.time_factor) == (6, 7, 16)
