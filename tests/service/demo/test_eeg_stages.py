from __future__ import annotations

from pathlib import Path

from torch import nn

from patchbay.models.neuript import NeurIPTConfig, NeurIPTForPreTraining, NeurIPTModel
from patchbay.models.neuript.steps import Steps
from patchbay_server.demo.eeg_stages import without_dropout

STEPS = Steps(window_seconds=2.0, channels=("C3", "C4"))


def test_what_is_tuned_has_no_dropout(tmp_path: Path) -> None:
    """And is what it was in everything else."""
    config = NeurIPTConfig.of_size("test", preprocessing=STEPS.to_config())
    NeurIPTForPreTraining(config).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    before = NeurIPTConfig.from_pretrained(tmp_path).to_dict()
    without_dropout(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert NeurIPTConfig.from_pretrained(tmp_path).to_dict() == before | {"dropout": 0.0}
    drops = [layer for layer in NeurIPTModel.from_pretrained(tmp_path).modules() if isinstance(layer, nn.Dropout)]
    assert drops and not any(layer.p for layer in drops)
