from __future__ import annotations

import pytest

from patchbay.errors import InvalidRecipe
from patchbay_server.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("350000", 350_000),
        ("12 B", 12),
        ("350kB", 350_000),
        ("350 KB", 350_000),
        ("1MB", 1_000_000),
        ("1.5M", 1_500_000),
        ("2g", 2_000_000_000),
        ("1T", 10**12),
        ("1KiB", 1024),
        ("1.5 MiB", 1_572_864),
        ("2Gi", 2 << 30),
        ("0.1", 0),
        ("4.35kB", 4350),  # 4349 in binary floats
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize(
    "text", ["", "kB", "1XB", "-1kB", "1e3", "iB", "1iB", "1,5MB", "1kBB", "\u0661kB", "1" * 19, "nan"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        parse_size(text, "target_size")
    assert caught.value.param == "target_size"
