"""How long a window takes: four clients with a delta each, one window a second; and four windows under four deltas in
one batch against four under none.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch

from benchmarks.systems.shapes import draw_delta
from patchbay.backbone import Backbone
from patchbay.models.neuript import NeurIPTConfig, NeurIPTForEEGClassification
from patchbay.models.neuript.montage import PAPER_20
from patchbay_server.demo.ask import upload
from patchbay_server.demo.process import running_server

CLIENTS, SECONDS, RATE, WINDOW_S = 4, 60, 256, 4
ROUNDS = 20
DENSITY = 0.05


def latencies(cache: Path) -> Mapping[str, Any]:
    """Milliseconds. Weights and deltas are random: what a window costs does not depend on them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, files = _model(folder)
        with running_server(base, folder / "store", cache / "server.log") as server:
            url = server.url
            with httpx2.Client(base_url=url, timeout=600) as client:
                for number, file in enumerate(files):
                    upload(client, f"subject-{number}", file)
            models = [f"subject-{number}" for number in range(CLIENTS)]
            _together(url, models, 1)  # loads them
            paced = _paced(url, models)
            pairs = [(_together(url, models, 1), _together(url, ["base"] * CLIENTS, 1)) for _ in range(ROUNDS)]
    ratios = [mixed / plain for mixed, plain in pairs]
    return {
        "p50_ms": 1000 * statistics.median(paced),
        "p95_ms": 1000 * float(np.quantile(paced, 0.95)),
        "most_ms": 1000 * max(paced),
        "answers": len(paced),
        "four_windows_four_deltas_ms": 1000 * statistics.median(mixed for mixed, _ in pairs),
        "four_windows_base_ms": 1000 * statistics.median(plain for _, plain in pairs),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def _model(folder: Path) -> tuple[Path, list[Path]]:
    torch.manual_seed(0)
    config = NeurIPTConfig.of_size("small", num_labels=2)
    NeurIPTForEEGClassification(config).save_pretrained(folder / "base")
    backbone = Backbone.load(folder / "base")
    files = [draw_delta(folder / f"{number}.delta", backbone, DENSITY, number) for number in range(CLIENTS)]
    return folder / "base", files


def _paced(url: str, models: list[str]) -> list[float]:
    """Seconds to each answer. Clients begin a quarter of a second apart."""
    begun = time.monotonic() + 0.5

    def client(number: int) -> list[float]:
        waits = []
        with httpx2.Client(base_url=url, timeout=600) as own:
            for second in range(SECONDS):
                due = begun + second + number / CLIENTS
                time.sleep(max(0.0, due - time.monotonic()))
                _ask(own, models[number], second)
                waits.append(time.monotonic() - due)
        return waits

    with ThreadPoolExecutor(CLIENTS) as threads:
        return [wait for waits in threads.map(client, range(CLIENTS)) for wait in waits]


def _together(url: str, models: list[str], seed: int) -> float:
    """Seconds until all of them are answered, asked at once."""
    with ThreadPoolExecutor(len(models)) as threads, httpx2.Client(base_url=url, timeout=600) as client:
        started = time.monotonic()
        list(threads.map(lambda model: _ask(client, model, seed), models))
        return time.monotonic() - started


def _ask(client: httpx2.Client, model: str, seed: int) -> None:
    time_s = np.arange(RATE * WINDOW_S) / RATE
    rng = np.random.default_rng(seed)
    signal = 20 * np.sin(2 * np.pi * (rng.uniform(4, 20, (20, 1)) * time_s + rng.uniform(0, 1, (20, 1))))
    numbers = {"signal": signal.round(1).tolist(), "sfreq": RATE, "unit": "uV", "ch_names": list(PAPER_20)}
    content = json.dumps({"model": model, "reject": False, **numbers})
    response = client.post("/v1/eeg/classify", content=content, headers=_JSON)
    response.raise_for_status()
    assert len(response.json()["data"]) == 1


_JSON = {"content-type": "application/json"}
