"""Damage by the thousand, blind and by the rules: nothing but a `DeltaError` or a sound delta comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.mutate import mutated
from tests.attacks.mutations import FILES, MUTATIONS, SAMPLES
from tests.long import LONG

from patchbay.delta import read_delta

ROOT = Path(__file__).parent.parent.parent
COUNT = 100_000 if LONG else 1500
MAX_PEAK = 512 << 20
MAX_CPU_SECONDS = 5.0


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.mutate", str(COUNT)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "core")]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_what_is_damaged_is_valid_before(sample: Any, tmp_path: Path) -> None:
    path = tmp_path / "sample"
    path.write_bytes(sample.file)
    read_delta(path, sample.specs, sample.fingerprint, read_base=sample.read_base)


def test_nothing_but_a_refusal_or_a_sound_delta_comes_of_damage(batches: list[dict[str, Any]]) -> None:
    assert [batch for batch in batches if "died" in batch] == []
    assert [story for batch in batches for story in batch["stories"]] == []
    found: Counter[str] = sum((Counter(batch["found"]) for batch in batches), Counter())
    assert sum(found.values()) == COUNT
    assert found["accepted"] < COUNT / 2 and len(found) >= 4


def test_it_takes_little_time_and_memory(batches: list[dict[str, Any]]) -> None:
    assert max(batch["peak"] for batch in batches) < MAX_PEAK
    assert max(batch["slowest_s"] for batch in batches) < MAX_CPU_SECONDS


def test_every_file_is_damaged_in_every_way() -> None:
    seen = {mutated(number)[:2] for number in range(1000)}
    assert seen == {(name, kind) for name in FILES for kind in MUTATIONS}
    assert mutated(7) == mutated(7)
