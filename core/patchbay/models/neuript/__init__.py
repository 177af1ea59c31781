"""NeurIPT (arXiv 2510.16548), an EEG model for any montage and length, registered with transformers' Auto classes.

Knows nothing of deltas: to the rest of Patchbay it is a backbone like any other.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from patchbay.architecture import AutoModelForEEGClassification
from patchbay.models.neuript.braindecode import BraindecodeModel, as_braindecode
from patchbay.models.neuript.classification import EEGClassifierOutput, NeurIPTForEEGClassification
from patchbay.models.neuript.config import NeurIPTConfig
from patchbay.models.neuript.model import NeurIPTModel, NeurIPTOutput
from patchbay.models.neuript.montage import Channel, Lobe, Montage
from patchbay.models.neuript.pretraining import NeurIPTForPreTraining, PreTrainingOutput

AutoConfig.register(NeurIPTConfig.model_type, NeurIPTConfig, exist_ok=True)
AutoModel.register(NeurIPTConfig, NeurIPTModel, exist_ok=True)
AutoModelForPreTraining.register(NeurIPTConfig, NeurIPTForPreTraining, exist_ok=True)
AutoModelForEEGClassification.register(NeurIPTConfig, NeurIPTForEEGClassification, exist_ok=True)

__all__ = [
    "BraindecodeModel",
    "Channel",
    "EEGClassifierOutput",
    "Lobe",
    "Montage",
    "NeurIPTConfig",
    "NeurIPTForEEGClassification",
    "NeurIPTForPreTraining",
    "NeurIPTModel",
    "NeurIPTOutput",
    "PreTrainingOutput",
    "as_braindecode",
]
