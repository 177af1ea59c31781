"""Calibration inputs from files of every kind, and the files that are refused."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from patchbay.compress import calibration
from patchbay.compress.calibration import Calibration
from patchbay.errors import InputError
from patchbay.models.inputs import ArrayInput

BATCH = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def write(folder: Path, name: str, data: bytes | str) -> Path:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(shape: str, dtype: str = "<f8") -> bytes:
    """The header of an array without the array."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def zipped() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, BATCH)
    return buffer.getvalue()


def arrays(found: Calibration) -> np.ndarray[Any, Any]:
    assert all(isinstance(item, ArrayInput) for item in found.inputs)
    return np.stack([item.array for item in found.inputs if isinstance(item, ArrayInput)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat\na dog", ("the cat", "a dog")),
        ("the cat\r\n\r\n  \na dog\n\n", ("the cat", "a dog")),
        ("one\u2028line\x0c, still\x85 one\n", ("one\u2028line\x0c, still\x85 one",)),
        ("\ufeffthe cat\n", ("the cat",)),
    ],
)
def test_text_is_one_input_a_line(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert Calibration.read(write(tmp_path, "inputs.txt", text)) == Calibration(expected)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i8", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_a_batch(tmp_path: Path, dtype: str, order: Any) -> None:
    found = Calibration.read(write(tmp_path, "inputs.npy", npy(np.asarray(BATCH, dtype=dtype, order=order))))
    assert np.array_equal(arrays(found), BATCH)
    assert arrays(found).dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_safetensors_is_a_batch(tmp_path: Path, dtype: torch.dtype) -> None:
    file = write(tmp_path, "inputs.safetensors", save({"pixels": torch.from_numpy(BATCH).to(dtype)}))
    assert np.array_equal(arrays(Calibration.read(file)), BATCH)


def test_labels_are_one_a_line(tmp_path: Path) -> None:
    file, labels = write(tmp_path, "a.npy", npy(BATCH)), write(tmp_path, "labels.txt", "cat\ndog\ncat\nowl\n")
    assert Calibration.read(file, labels).labels == ("cat", "dog", "cat", "owl")
    assert Calibration.read(file).labels is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "", "has no inputs"),
        ("a.txt", " \n\n", "has no inputs"),
        ("a.txt", b"\xff\xfe\x00\x01", "is not UTF-8 text"),
        ("a.npy", b"", "is no batch of arrays"),
        ("a.npy", b"no array", "is no batch of arrays"),
        ("a.npy", pickle.dumps([1, 2]), "is no batch of arrays"),
        ("a.npy", npy(np.array([[None, 1]], dtype=object), allow_pickle=True), "is no batch of arrays"),
        ("a.npy", zipped(), "is no batch of arrays"),
        ("a.npy", npy(BATCH)[:-1], "is no batch of arrays"),
        ("a.npy", npy(np.array([["a", "b"]])), "is no batch of arrays"),
        ("a.npy", npy(BATCH.astype(">f4")), "is no batch of arrays"),
        ("a.npy", npy(BATCH.astype(np.complex64)), "complex"),
        ("a.npy", npy(BATCH[:0]), "has no inputs"),
        ("a.npy", npy(np.ones(3)), "the first axis counts the inputs"),
        ("a.npy", npy(np.float32(3)), "the first axis counts the inputs"),
        ("a.npy", header("(1000000000, 1000)") + bytes(64), "is no batch of arrays"),
        ("a.npy", header("(10**17, 1000)") + bytes(64), "is no batch of arrays"),
        ("a.npy", header("(-1, 10)") + bytes(160), "is no batch of arrays"),
        ("a.npy", header("(" * 3000), "is no batch of arrays"),
        ("a.npy", header("(1000000000, 0)"), "has 1000000000 inputs"),
        ("a.safetensors", b"", "is no batch of arrays"),
        ("a.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "is no batch of arrays"),
        ("a.safetensors", save({}), "holds 0 tensors"),
        ("a.safetensors", save({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}), "holds 2 tensors"),
        ("a.safetensors", save({"a": torch.ones(2)}), "the first axis counts the inputs"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Calibration.read(write(tmp_path, name, data))
    assert caught.value.param == "calibration"
    assert name in caught.value.message


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no calibration file"):
        Calibration.read(tmp_path / "a.txt")
    with pytest.raises(InputError, match="there is no labels file") as caught:
        Calibration.read(write(tmp_path, "b.txt", "the cat"), tmp_path / "a.txt")
    assert caught.value.param == "labels"


@pytest.mark.parametrize(
    ("labels", "message"),
    [("cat\n", "1 labels for 2"), ("", "0 labels for 2"), ("a\nb\nc", "3 labels for 2"), (b"\xff", "not UTF-8")],
)
def test_bad_labels_are_refused(tmp_path: Path, labels: bytes | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Calibration.read(write(tmp_path, "a.txt", "the cat\na dog\n"), write(tmp_path, "labels.txt", labels))
    assert caught.value.param == "labels"


@pytest.mark.parametrize("name", ["a.txt", "a.npy", "a.safetensors"])
def test_large_files_are_never_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(calibration.MAX_FILE + 1)
    with pytest.raises(InputError, match=f"more than {calibration.MAX_FILE} bytes"):
        Calibration.read(tmp_path / name)


def test_too_many_inputs(tmp_path: Path) -> None:
    file = write(tmp_path, "a.txt", "a\n" * (calibration.MAX_INPUTS + 1))
    with pytest.raises(InputError, match=f"has {calibration.MAX_INPUTS + 1} inputs"):
        Calibration.read(file)


@pytest.mark.parametrize("name", ["x.edf", "x.BDF", "x_raw.fif.gz"])
def test_a_recording_is_no_set_of_windows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"0       ")
    with pytest.raises(
        InputError, match="is a recording, and windows of recordings are wanted: .*calibration.safetens"
    ):
        Calibration.read(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: give a calibration file"):
        Calibration.read(tmp_path)
    (tmp_path / "calibration.safetensors").touch()
    with pytest.raises(InputError, match=r"is a folder: give .*calibration\.safetensors"):
        Calibration.read(tmp_path)
