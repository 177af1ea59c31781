"""PEFT adapters as fine-tuned checkpoints."""

from patchbay.adapters.adapted import AdaptedCheckpoint
from patchbay.adapters.folder import open_finetuned

__all__ = ["AdaptedCheckpoint", "open_finetuned"]
