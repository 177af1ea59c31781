from __future__ import annotations

import pytest

from patchbay.errors import InputError
from patchbay.training.channels import check_channels

RECORDED = ("EEG FP1-REF", "T3", "Oz..", "F3-C3", "ECG", "strange")


@pytest.mark.parametrize("wanted", [None, (), ("Fp1", "T7", "oz"), ("F3-C3",), ("strange",)])
def test_channels_that_are_there(wanted: tuple[str, ...] | None) -> None:
    check_channels(RECORDED, wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("Oz", "Foo"), "it has no channel 'Foo': its channels are Fp1, T7, Oz, F3-C3, strange"),
        (("O1", "O2"), r"no channel 'O1', 'O2': .*; did you mean Oz\?"),
        (("Fp2",), r"did you mean Fp1\?"),
        (("ECG",), "no channel 'ECG'"),
    ],
)
def test_channels_that_are_not(wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_channels(RECORDED, wanted)


def test_few_of_many_are_listed() -> None:
    with pytest.raises(InputError, match=r"its channels are (\w+, ){11}\w+ and 8 more"):
        check_channels([f"x{number}" for number in range(20)], ["Cz"])
