from __future__ import annotations

from pathlib import Path

import pytest
import torch

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTConfig
from patchbay.training.memory import BUDGET, Plan, check_fits, free_bytes, give_back_at_once, plan_for

CPU = torch.device("cpu")


def plan(size: str, channels: int, samples: int, *, decodes: bool = True) -> Plan:
    return plan_for(NeurIPTConfig.of_size(size), 1_000_000, (channels, samples), decodes=decodes, device=CPU)


def test_small_windows_go_together_and_large_ones_alone() -> None:
    few, many = plan("test", 3, 128), plan("small", 64, 512)
    assert few.rows > 16 and not few.recomputes and many.recomputes
    assert plan("paper", 64, 640).rows == 1
    assert plan("small", 64, 640, decodes=False).rows >= many.rows, "a classifier has no decoder"
    assert max(few.needed, many.needed) <= BUDGET + 28_000_000 < plan("paper", 64, 640).needed


def test_more_of_anything_takes_more() -> None:
    least = plan("paper", 20, 256)
    for more in (plan("paper", 64, 640), plan("paper", 20, 2560), plan("paper", 200, 256)):
        assert more.needed > least.needed and more.rows <= least.rows


def test_what_does_not_fit_is_refused() -> None:
    check_fits(plan("test", 3, 128), (3, 128), CPU, "take less")
    message = (
        r"windows of 64 channels and 7680 samples takes about \d+\.\d GB, and \d+\.\d GB of memory are free: take less"
    )
    with pytest.raises(InputError, match=message):
        check_fits(Plan(1, True, 1 << 50), (64, 7680), CPU, "take less")


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        folder = root / ("proc" if name == "meminfo" else "sys/fs/cgroup")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace("_", ".", 1)).write_text(text)
    return root


def test_what_is_free(tmp_path: Path) -> None:
    meminfo = "MemTotal:       24000 kB\nMemAvailable:    5000 kB\n"
    assert free_bytes(tmp_path) is None
    assert free_bytes(write(tmp_path, meminfo=meminfo)) == 5000 * 1024
    assert free_bytes(write(tmp_path, memory_max="max\n", memory_current="9\n")) == 5000 * 1024, "no limit"
    stat = "anon 5\nactive_file 7\ninactive_file 300000\n"
    write(tmp_path, memory_max="4000000\n", memory_current="1000000\n", memory_stat=stat)
    assert free_bytes(tmp_path) == 3_300_000, "what is cached is let go"


def test_tensors_are_given_back() -> None:
    give_back_at_once()
    before = resident()
    held = [torch.ones(1 << 20) for _ in range(20)]
    last = held.pop()
    held.clear()
    assert float(last.sum()) == 1 << 20 and resident() < before + (30 << 20), "though one lies above them"


def resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
