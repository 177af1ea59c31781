"""Every hostile file is refused with the right error, in little time and memory, and is listed in README.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.attacks import container, encodings, lossless, manifest, streams, version1, version2
from tests.attacks.registry import ATTACKS
from tests.delta.samples import FINGERPRINT, SPECS, assemble, sample

from patchbay.delta import read_delta

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MAX_PEAK = 512 << 20
MAX_CPU_SECONDS = 5.0  # an attack that works takes minutes; a busy machine doubles what a refusal takes
assert container and encodings and lossless and manifest and streams and version1 and version2  # which registers them


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("attacks")
    for attack in ATTACKS.values():
        (folder / f"{attack.name}.safetensors").write_bytes(attack.make())
    path = os.pathsep.join([str(ROOT), str(ROOT / "core")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.attacks.run", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_the_sample_that_attacks_start_from_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "sample.safetensors"
    path.write_bytes(assemble(*sample()))
    assert set(read_delta(path, SPECS, FINGERPRINT).matrices) == {"attn.weight", "mlp.weight", "odd.weight"}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    attack, outcome = ATTACKS[name], outcomes[name]
    assert outcome["error"] == attack.error.__name__, outcome.get("message")
    assert attack.says in outcome["message"]
    assert outcome["param"]
    assert len(outcome["message"]) < 1000
    assert outcome["peak"] < MAX_PEAK
    assert outcome["cpu_s"] < MAX_CPU_SECONDS


def test_readme_lists_every_attack_with_its_outcome() -> None:
    text = (HERE / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (.+) \| `(\w+)` \|$", text, re.MULTILINE)
    expected = [(a.name, a.why, a.error.__name__) for a in ATTACKS.values()]
    assert sorted(listed) == sorted(expected)


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40
