from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.commands.conftest import Cli

from patchbay.checkpoint import Checkpoint
from patchbay.compress.compress import Options, compress
from patchbay.delta import DeltaFile


def test_ok(cli: Cli, delta: Path, base: Path) -> None:
    result = cli("verify", delta, "--base", base, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["ok"] is True and found["bytes"] == delta.stat().st_size
    assert found["fingerprint"] == Checkpoint.open(base).fingerprint
    assert found["payload_sha256"] == DeltaFile.open(delta).payload_sha256()
    assert cli("verify", delta, "--base", base).stdout.startswith("ok ")


def test_another_base(cli: Cli, delta: Path, tuned: Path) -> None:
    result = cli("verify", delta, "--base", tuned, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["param"]) == ("wrong_base", "base.fingerprint")


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit(cli: Cli, delta: Path, base: Path, tmp_path: Path, place: str) -> None:
    content, start = bytearray(delta.read_bytes()), DeltaFile.open(delta).header_bytes
    index = {"first": start, "middle": (start + len(content)) // 2, "last": len(content) - 1}[place]
    content[index] ^= 1
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    result = cli("verify", path, "--base", base, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == "malformed_delta"
    assert len(result.stderr.splitlines()) == 1


def test_values_that_are_not_finite(cli: Cli, base: Path, tuned: Path, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"

    def poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][0, 0] = float("nan")
        return tensors

    poisoned = pico.rewrite(tuned, tmp_path / "poisoned", poison)
    compress(base, poisoned, tmp_path / "x.safetensors", Options(exact=True))
    result = cli("verify", tmp_path / "x.safetensors", "--base", base, "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"], error["param"]) == (2, "non_finite_value", name)
