"""Classification heads that deltas bring: which one answers, and a model that joins it to the resident encoder.

The encoder inside such a model is the backbone's own memory, so a patch of the backbone is a patch of every head's
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from patchbay.architecture import AUTO_CLASS, CLASSIFIERS, Task, detect_task, resident_names
from patchbay.backbone import Backbone, labels_of
from patchbay.delta import Delta
from patchbay.errors import AmbiguousHead, MalformedDelta

# What a delta's config may say about the model that is built for its head. Everything else is the base's: the file came
# from outside, and a config can ask for a million layers or for code from elsewhere.
HEAD_CONFIG = frozenset({"architectures", "id2label", "label2id", "problem_type"})


@dataclass(frozen=True, slots=True, weakref_slot=True)
class HeadModel:
    """A model ready to classify and the names of its classes, in order of its logits."""

    model: PreTrainedModel
    labels: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of the head alone: the encoder is the backbone's."""
        prefix = f"{self.model.base_model_prefix}."
        return sum(t.nbytes for name, t in self.model.named_parameters() if not name.startswith(prefix))


def choose_head(backbone: Backbone, deltas: Mapping[str, Delta], asked: str | None) -> str | None:
    """The delta whose own head answers, or None for the base's head.

    `deltas` are the request's terms by the name they were given. A head that the base has too, with equal labels, is
    merged like any matrix and belongs to nobody. Raises AmbiguousHead where several could answer, none can, or `asked`
    is no term.
    """
    if asked is not None and asked not in deltas:
        raise AmbiguousHead(
            f"head {asked!r} is not among the terms: {', '.join(sorted(deltas)) or 'none'}", param="head"
        )
    owners = sorted(name for name, delta in deltas.items() if delta.added)
    if asked is not None:
        owners = [asked] if asked in owners else []
    if len(owners) > 1:
        raise AmbiguousHead(f"several heads could answer: say which with 'head': {', '.join(owners)}", param="head")
    if not owners and backbone.labels is None:
        whom = repr(asked) if asked else "neither the base nor any of the deltas"
        raise AmbiguousHead(
            f"{whom} has no head: name a term that brings one"
            if asked
            else f"{whom} has a classification head: name a delta that brings one",
            param="head",
        )
    return owners[0] if owners else None


def base_head(backbone: Backbone) -> HeadModel:
    assert backbone.labels is not None, "choose_head has found that the base answers"
    return HeadModel(backbone.model, backbone.labels)


def delta_head(backbone: Backbone, delta: Delta) -> HeadModel:
    """The fine-tune's head on the resident encoder. Raises MalformedDelta where its tensors do not make up a head."""
    model = _empty_classifier(backbone, delta)
    _join(model, backbone, delta)
    labels = labels_of(model.config.to_dict())
    if labels is None or len(set(labels)) != model.config.num_labels:
        raise MalformedDelta("the delta's labels are not one name for each class of its head", param="labels")
    model.train(False)
    return HeadModel(model.requires_grad_(False), labels)


def check_head(backbone: Backbone, delta: Delta) -> None:
    """What `delta_head` would raise, when the delta is uploaded instead of when somebody asks."""
    if delta.added and backbone.task in (*CLASSIFIERS, Task.EMBEDDING):
        delta_head(backbone, delta)


def _empty_classifier(backbone: Backbone, delta: Delta) -> PreTrainedModel:
    """Of the base's architecture, with the delta's labels, on the meta device."""
    base = backbone.architecture.config.to_dict()
    changes = {key: value for key, value in delta.manifest.config.items() if key in HEAD_CONFIG}
    try:
        task = detect_task({**base, **changes})
        config = type(backbone.architecture.config).from_dict({**base, **changes})
        if task in CLASSIFIERS:
            # A dtype other than torch's default would become the default of all threads while the model is built.
            with torch.device("meta"):
                model: PreTrainedModel = AUTO_CLASS[task].from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
            return model
    except Exception as error:  # whatever a config's values provoke in transformers
        reason = str(error).partition("\n")[0][:200]
        raise MalformedDelta(f"the delta's config describes no head: {reason}", param="config") from error
    raise MalformedDelta("the delta adds tensors, but its config names no classifier", param="config.architectures")


def _join(model: PreTrainedModel, backbone: Backbone, delta: Delta) -> None:
    prefix = model.base_model_prefix
    encoder = backbone.model if backbone.architecture.is_base_model else getattr(backbone.model, prefix)
    setattr(model, prefix, encoder)
    expected = model.state_dict()
    dtype = next(backbone.model.parameters()).dtype
    state: dict[str, torch.Tensor] = {}
    for name, place in resident_names(model, list(delta.added)).items():
        tensor = delta.added[name]
        if place.startswith(f"{prefix}.") or tensor.shape != expected[place].shape:
            raise MalformedDelta(f"{name!r} does not fit the head that the delta's config describes", param=name)
        state[place] = tensor.to(backbone.device, dtype)
    model.load_state_dict(state, strict=False, assign=True)
    unfilled = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if unfilled:
        raise MalformedDelta(f"the delta's head lacks {unfilled[0]!r}", param=unfilled[0])
