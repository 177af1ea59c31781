"""A language model that is held in its forward pass, so that what is under way stays so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol

from patchbay.backbone import Backbone


@dataclass(frozen=True, slots=True)
class Gate:
    """`entered` once a forward pass stands before it; `opened` lets all go on."""

    entered: Event = field(default_factory=Event)
    opened: Event = field(default_factory=Event)

    def wait(self) -> None:
        self.entered.set()
        assert self.opened.wait(60)


class HasBackbone(Protocol):
    @property
    def backbone(self) -> Backbone: ...


@contextmanager
def before_pass(served: HasBackbone, function: Callable[[], None]) -> Iterator[None]:
    """Called in the engine's thread before every forward pass."""
    model = served.backbone.model
    encoder = getattr(model, model.base_model_prefix)
    handle = encoder.register_forward_pre_hook(lambda *_: function())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def held(served: HasBackbone) -> Iterator[Gate]:
    gate = Gate()
    with before_pass(served, gate.wait):
        try:
            yield gate
        finally:
            gate.opened.set()
