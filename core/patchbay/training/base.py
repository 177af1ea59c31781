"""The folder that a fine-tune begins from. Knows nothing of recordings and of classes."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTModel
from patchbay.training.checkpoint import FOLDER

DECODER = ("decoder.", "mask_token")  # what pre-training has and a classifier does not


def check_base(base: Path) -> None:
    """Raises InputError for what is no folder of a pre-trained NeurIPT: no folder, one of another model, or of a
    fine-tune, whose delta would be made against a base that no server has.
    """
    config = _config(base)
    kind = config.get("model_type")
    if kind != NeurIPTConfig.model_type:
        raise InputError(f"{base} is a model of type {kind!r}, and NeurIPT is fine-tuned here", param="base")
    if NeurIPTForEEGClassification.__name__ in (config.get("architectures") or ()):
        classes = ", ".join(map(str, (config.get("id2label") or {}).values()))
        raise InputError(
            f"{base} is a fine-tune ({classes}): give the pre-trained folder that it was made from", param="base"
        )


def encoder_of(base: Path) -> NeurIPTModel:
    """Raises InputError as `check_base` does, and where weights are missing or of another shape."""
    check_base(base)
    try:
        loaded: Any = NeurIPTModel.from_pretrained(base, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{base} cannot be read: {reason}", param="base") from error
    encoder, found = loaded
    unknown = [name for name in found["unexpected_keys"] if not name.startswith(DECODER)]
    for name in (*found["missing_keys"], *unknown):
        raise InputError(f"{base} does not hold this encoder: {name!r} is not in both", param="base")
    assert isinstance(encoder, NeurIPTModel)
    return encoder


def _config(base: Path) -> dict[str, Any]:
    if not base.is_dir():
        beside = [path.name for path in base.parent.iterdir() if path.is_dir()] if base.parent.is_dir() else []
        near = difflib.get_close_matches(base.name, beside, 1, 0.5)
        hint = f"; did you mean {base.parent / near[0]}?" if near else ": `patchbay neuript pretrain` makes one"
        raise InputError(f"there is no folder {base}{hint}", param="base")
    file = base / "config.json"
    if not file.is_file():
        why = "its pre-training has not ended: give the same command again" if (base / FOLDER).is_dir() else "no model"
        raise InputError(f"{base} has no config.json: {why}", param="base")
    try:
        found: dict[str, Any] = dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read: {error}", param="base") from error
    return found
