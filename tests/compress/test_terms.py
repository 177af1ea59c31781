"""Terms that are read tensor by tensor are what they are when they are read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests import pico
from tests.golden.make import EXPECTED, EXPECTED_VERSION_1, FILE, FILE_VERSION_1, FINGERPRINT, SPECS, flat
from tests.golden.test_golden import bits

from patchbay.compress import terms as module
from patchbay.compress.terms import BaseFolder, open_file, open_term
from patchbay.delta import Delta
from patchbay.errors import MalformedDelta
from patchbay.task_vector import TaskVector

ModelFolder = Callable[..., Path]


@pytest.fixture(params=[0, 1 << 28], ids=["one by one", "at once"], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", request.param)


def unreachable(name: str) -> torch.Tensor:
    raise AssertionError(name)


@pytest.mark.parametrize(("file", "expected"), [(FILE_VERSION_1, EXPECTED_VERSION_1), (FILE, EXPECTED)])
def test_every_encoding(file: Path, expected: Path) -> None:
    term = open_file("a", file, SPECS, FINGERPRINT, unreachable)
    found: dict[str, torch.Tensor] = {}
    for name in term.source.names:
        part = term.source.read(name)
        assert name in part and {*part.matrices, *part.vectors, *part.factors} == {name}
        found |= flat(part)
    found |= flat(Delta(term.source.manifest, {}, {}, term.added, term.source.copied, {}, appended=term.appended))
    stored = load_file(expected)
    assert found.keys() == stored.keys()
    assert all(bits(found[name]) == bits(tensor) for name, tensor in stored.items())
    assert term.source.read("no.such.tensor").matrices == {}


def test_a_fine_tuned_folder(llama: Path, llama_tuned: Path) -> None:
    term, vector = open_term("a", llama_tuned, BaseFolder.open(llama)), TaskVector.from_models(llama, llama_tuned)
    assert term.source.names == set(vector.changed) and term.is_model
    for name in vector:
        part = term.source.read(name)
        assert list(part.vectors) == [name] and torch.equal(part.vectors[name], vector[name])


def test_tensors_are_read_when_they_are_asked_for(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    weights = tmp_path / "tuned" / pico.WEIGHTS
    pico.rewrite(llama_tuned, weights.parent, lambda tensors: tensors)
    term = open_term("a", weights.parent, BaseFolder.open(llama))
    name = min(term.source.names)
    term.source.read(name)
    weights.touch()
    with pytest.raises(Exception, match="changed since it was opened"):
        term.source.read(name)


def test_a_damaged_file(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    file = pico.delta_file(llama, llama_tuned, tmp_path / "delta")
    data = bytearray(file.read_bytes())
    data[-len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(MalformedDelta):
        open_term("a", file, BaseFolder.open(llama))


def test_digests_are_of_contents(llama: Path, llama_tuned: Path, tmp_path: Path) -> None:
    def digests() -> Iterator[str]:
        file = pico.delta_file(llama, llama_tuned, tmp_path / "delta")
        other = tmp_path / "copy"
        other.write_bytes(file.read_bytes())
        base = BaseFolder.open(llama)
        for path in (file, other, llama_tuned, pico.rewrite(llama_tuned, tmp_path / "again", lambda tensors: tensors)):
            yield open_term("a", path, base).digest

    first, second, model, again = digests()
    assert first == second != model == again
