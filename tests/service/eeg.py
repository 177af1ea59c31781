"""Recordings to ask a server about, and an encoder with two fine-tunes that were trained on them in different ways."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import torch
from httpx2 import Response
from tests import pico
from tests.service.serving import Served
from tests.training.recordings import signal

from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification, NeurIPTModel
from patchbay.models.neuript.steps import Steps

NAMES = ["Fp1", "C3", "O1"]
RATE = 100
PATIENT = "Ada-Lovelace"
NUMBERS = {"sfreq": RATE, "unit": "uV", "ch_names": NAMES}
WIDE = ("Fp1", "Cz", "C3", "C4", "O1", "O2")
TRAINED = {
    "average": Steps(
        window_seconds=1.0, reference="average", channels=("C4", "C3", "Cz", "O1"), line_hz=50.0, rejects=False
    ),
    "pairs": Steps(window_seconds=1.0, pairs=("Fp1-C3", "C3-Cz", "Cz-C4", "C4-O2"), rejects=False),
    "left": Steps(window_seconds=1.0, stride_seconds=0.5, channels=("C3", "O1"), rejects=False),
    "right": Steps(window_seconds=2.0, rejects=False),
}
_SIZE: dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "intermediate_size": 24, "expert_size": 24}


def rows(seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    return signal(seconds, RATE, len(NAMES), seed).round(2)


def wide_rows(seconds: float = 8.0, seed: int = 0) -> np.ndarray:
    """Of the channels WIDE, other ones in each."""
    return np.concatenate([signal(seconds, RATE, 2, seed + number) for number in range(3)]).round(2)


def edf_bytes(found: np.ndarray, names: Sequence[str] = NAMES, **changes: Any) -> bytes:
    fields = {"physical_dimension": "uV", "physical_range": (-400, 400)} | changes
    stream = io.BytesIO()
    signals = [edfio.EdfSignal(row, RATE, label=name, **fields) for row, name in zip(found, names, strict=True)]
    edfio.Edf(signals, patient=edfio.Patient(code="X", name=PATIENT)).write(stream)
    return stream.getvalue()


def mixed_edf(*, label: Sequence[str], sampling_frequency: Sequence[int]) -> bytes:
    """Of channels with rates of their own."""
    stream, found = io.BytesIO(), wide_rows(4.0)
    made = zip(found, label, sampling_frequency, strict=False)
    edfio.Edf(
        [
            edfio.EdfSignal(row[: 4 * rate], rate, label=name, physical_dimension="uV", physical_range=(-400, 400))
            for row, name, rate in made
        ]
    ).write(stream)
    return stream.getvalue()


def npy_bytes(found: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, found)
    return stream.getvalue()


def ask(served: Served, path: str = "classify", **body: Any) -> Response:
    """JSON, with a recording of four seconds where the body has none."""
    return served.post(f"/v1/eeg/{path}", {"signal": rows().tolist(), **NUMBERS, **body})


def send(served: Served, file: bytes, path: str = "classify", **body: Any) -> Response:
    """A form."""
    parts = {"request": (None, json.dumps(body), "application/json"), "file": ("x", file, "application/octet-stream")}
    return served.client.post(f"/v1/eeg/{path}", files=parts)


def encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = NeurIPTConfig(merges=(1, 2), experts=(0, 2), **_SIZE)
    NeurIPTModel(config).save_pretrained(folder)
    return folder


def classifier(base: Path, name: str, out: Path) -> Path:
    """A fine-tune of `base` with a head, in folder `out`, and its delta file."""
    torch.manual_seed(len(name))
    config = NeurIPTConfig.from_pretrained(base)
    labels = {0: "rest", 1: name, 2: "feet"}
    config.id2label, config.label2id = labels, {label: number for number, label in labels.items()}
    config.preprocessing = TRAINED[name].to_config()
    model = NeurIPTForEEGClassification(config)
    model.neuript.load_state_dict(NeurIPTModel.from_pretrained(base).state_dict())
    with torch.no_grad():
        for tensor in model.neuript.parameters():
            tensor += 0.05 * torch.randn_like(tensor)
    model.save_pretrained(out)
    return pico.delta_file(base, out, out / "delta", density=0.3)
