"""The size from which on a delta is patched: of this machine, and of the model."""

from __future__ import annotations

from pathlib import Path

import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.execute import break_even
from patchbay.execute.break_even import COUNTS, break_even_bytes, merged_from


def test_a_slower_base_pays_for_larger_deltas(tmp_path: Path) -> None:
    """Forty times the layers, so that no other process on the machine can make it the faster one."""
    found = [break_even_bytes(Backbone.load(pico.llama(tmp_path / str(layers), layers=layers))) for layers in (2, 80)]
    assert 0 < found[0] < found[1]


def test_the_machine_is_measured_once() -> None:
    cpu = torch.device("cpu")
    rate, inputs = break_even._bytes_per_second(cpu), merged_from(cpu)
    assert rate > 0 and inputs in (*COUNTS, 2 * COUNTS[-1])
    assert (break_even._bytes_per_second(cpu), merged_from(cpu)) == (rate, inputs)
