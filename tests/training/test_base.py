"""What a fine-tune may begin from, and what is said of anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTForPreTraining, NeurIPTModel
from patchbay.training.base import check_base, encoder_of


@pytest.mark.parametrize("kind", [NeurIPTForPreTraining, NeurIPTModel])
def test_encoders(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = kind(NeurIPTConfig.of_size("test"))
    whole.save_pretrained(tmp_path)
    wanted = getattr(whole, "neuript", whole).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in encoder_of(tmp_path).state_dict().items())


def test_a_fine_tune_is_no_base(tmp_path: Path) -> None:
    config = NeurIPTConfig.of_size("test", id2label={0: "left", 1: "right"})
    NeurIPTForEEGClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a fine-tune \(left, right\): give the pre-trained folder") as caught:
        check_base(tmp_path)
    assert caught.value.param == "base"


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "my-eeg").mkdir()
    with pytest.raises(InputError, match=r"there is no folder .*my-egg; did you mean .*my-eeg\?"):
        check_base(tmp_path / "my-egg")
    with pytest.raises(InputError, match=r"there is no folder .*: `patchbay neuript pretrain` makes one"):
        check_base(tmp_path / "nowhere" / "x")
    with pytest.raises(InputError, match=r"has no config\.json: no model"):
        check_base(tmp_path / "my-eeg")
    (tmp_path / "my-eeg" / "checkpoint").mkdir()
    with pytest.raises(InputError, match="its pre-training has not ended: give the same command again"):
        check_base(tmp_path / "my-eeg")


@pytest.mark.parametrize(
    ("text", "message"),
    [(json.dumps({"model_type": "bert"}), "is a model of type 'bert'"), ("{", "cannot be read"), ("[1]", "cannot be")],
)
def test_other_models(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        check_base(tmp_path)


def test_a_file_of_weights_that_is_broken(tmp_path: Path) -> None:
    NeurIPTModel(NeurIPTConfig.of_size("test")).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        encoder_of(tmp_path)
