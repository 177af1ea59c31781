"""mergekit and PEFT for real on a pico encoder; where there is no mergekit, a line that says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import text, text_cases
from benchmarks.families.base import Case, no_progress
from benchmarks.merges import Member, built
from benchmarks.merging import FULL_SOURCE, Deliver, Merge
from benchmarks.methods import Effort
from benchmarks.other_tools import Missing, OtherMerge
from benchmarks.quality_merging import QUESTION, Scale, main, tools_of
from benchmarks.report_merging import load, markdown
from benchmarks.results import Ledger
from benchmarks.tool_mergekit import COMMAND, Mergekit
from benchmarks.tool_peft import METHODS, RANK, UNMERGED, Peft
from rich.console import Console
from safetensors.torch import load_file
from tests import pico
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from benchmarks import merges, quality_merging
from patchbay.checkpoint import Checkpoint
from patchbay.merge import METHODS as OURS
from patchbay.task_vector import TaskVector

TASKS = ("a", "b", "c")
LINEAR = ("dense.weight", "query.weight", "key.weight", "value.weight")
IDS = torch.randint(4, pico.VOCAB, (60, 12), generator=torch.Generator().manual_seed(0))
SMALL = Scale("quick", (FULL_SOURCE,), 40, 8, (), Effort(6, 32), other_tools=True)
Differences = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Agreement:
    """A task is to answer as its fine-tune does."""

    folder: Path
    name: str = "agreement"

    def logits(self, task: str, model: PreTrainedModel) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(input_ids=IDS).logits
        return found

    def targets(self, task: str) -> torch.Tensor:
        model = AutoModelForSequenceClassification.from_pretrained(self.folder / task)
        return self.logits(task, model.train(False)).argmax(-1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, tuple[Member, ...]]:
    """Three fine-tunes with heads of their own, whole task vectors as deltas."""
    folder = tmp_path_factory.mktemp("tools")
    base = pico.bert_encoder(folder / "base")
    return Agreement(folder), tuple(_member(folder, base, task, seed) for seed, task in enumerate(TASKS, 1))


def _member(folder: Path, base: Path, task: str, seed: int) -> Member:
    generator = torch.Generator().manual_seed(seed)
    encoder = {f"bert.{name}": tensor for name, tensor in load_file(base / pico.WEIGHTS).items()}

    def moved(tensors: Differences) -> Differences:
        near = {name: encoder.get(name, tensor) for name, tensor in tensors.items()}
        return {name: each + 0.02 * torch.randn(each.shape, generator=generator) for name, each in near.items()}

    tuned = pico.rewrite(pico.bert_classifier(folder / f"{task}-start", seed=seed), folder / task, moved)
    case = Case("agreement", task, base, tuned, folder / "none.txt", Checkpoint.open(tuned).fingerprint)
    file = Deliver(case, FULL_SOURCE, folder / "deltas", Effort()).run(no_progress)
    return Member(case, file, file, 1.0)


def _vectors(members: tuple[Member, ...]) -> list[TaskVector]:
    return [TaskVector.from_models(member.case.base, member.case.finetuned) for member in members]


@pytest.fixture
def mergekit() -> Mergekit:
    try:
        return Mergekit.find()
    except Missing as reason:
        pytest.skip(str(reason))


# --- PEFT


def test_at_full_rank_an_extraction_is_the_fine_tunes_linear_layers(given: tuple[Any, tuple[Member, ...]]) -> None:
    members = given[1]
    made = Peft.find().merge(members, UNMERGED)
    assert len(made.differences) == len(members)
    for vector, found in zip(_vectors(members), made.differences, strict=True):
        linear = {name for name in vector.specs if name.endswith(LINEAR)}
        assert set(found) == linear
        for name in linear:
            assert min(vector.specs[name].shape) <= RANK
            torch.testing.assert_close(found[name], vector[name], rtol=0, atol=1e-6)


def test_at_full_rank_svd_is_the_sum_and_its_adapter_goes_afterwards(given: tuple[Any, tuple[Member, ...]]) -> None:
    members = given[1]
    first, one, other = (Peft.find().merge(members, method).differences[0] for method in ("svd", "svd", "linear"))
    for name, found in one.items():
        expected = sum((vector[name] for vector in _vectors(members)), torch.zeros(()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(found, first[name])
        assert not torch.allclose(found, other[name], rtol=0, atol=1e-3)  # of its own: no adapter was left behind


def test_what_draws_draws_the_same_again(given: tuple[Any, tuple[Member, ...]]) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one, two = (Peft.find().merge(given[1], "dare_linear").differences[0] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_a_line_has_what_the_report_needs(given: tuple[Any, tuple[Member, ...]], method: str, tmp_path: Path) -> None:
    family, members = given
    tool = Peft.find()
    job = OtherMerge(family, tool, method, members, 60)
    line = job.run(no_progress)
    assert (line["source"], line["tool"], line["scale"], line["tuned"]) == (f"peft rank {RANK}", "peft", 1.0, False)
    assert set(line["retained"]) == set(TASKS)
    assert line["builds"] == 1 and line["build_seconds"] > 0
    sides = sum(64 * sum(shape) for shape in _shapes(members)) * 4  # bytes of A and B, fp32
    assert (line["path"], line["bytes"]) == (
        ("adapters", len(members) * sides) if method == UNMERGED else ("adapter", sides)
    )
    ledger = Ledger(tmp_path / "ledger.jsonl", QUESTION)
    ledger.append(line)
    assert ledger.find(job.question())
    assert ledger.find(OtherMerge(family, Peft("0.0"), method, members, 60).question()) is None


def _shapes(members: tuple[Member, ...]) -> list[tuple[int, ...]]:
    specs = _vectors(members)[0].specs
    return [spec.shape for name, spec in specs.items() if name.endswith(LINEAR)]


def test_each_task_is_asked_under_its_own_adapter(given: tuple[Any, tuple[Member, ...]]) -> None:
    """Which is all of the fine-tune that is linear, so it agrees with it more than under the sum of all."""
    alone, merged = (
        OtherMerge(*given[:1], Peft.find(), method, given[1], 60).run(no_progress) for method in (UNMERGED, "svd")
    )
    assert alone["average_retained"] > merged["average_retained"]


# --- mergekit


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "model_stock"])
def test_mergekit_gives_what_we_give(given: tuple[Any, tuple[Member, ...]], mergekit: Mergekit, method: str) -> None:
    """Embeddings, norms and biases too. Of ties these are our defaults, and so are theirs."""
    family, members = given
    (found,) = mergekit.merge(members, method).differences
    expected = _ours(members, method)
    assert set(found) == set(load_file(members[0].case.base / pico.WEIGHTS))
    for name, difference in found.items():
        torch.testing.assert_close(difference, expected[name], rtol=0, atol=1e-6, msg=name)


def _ours(members: tuple[Member, ...], method: str) -> Differences:
    """As the resident base shows it."""
    merge = built(members, method)
    base = load_file(members[0].case.base / pico.WEIGHTS)
    with merges._patched(merge, merge.merges[0], 1.0) as backbone:
        return {name: backbone.tensor(name) - tensor for name, tensor in base.items()}


def test_mergekits_line_is_scored_as_ours_is(given: tuple[Any, tuple[Member, ...]], mergekit: Mergekit) -> None:
    family, members = given
    theirs = OtherMerge(family, mergekit, "task_arithmetic", members, 60).run(no_progress)
    ours = Merge(family, "all", FULL_SOURCE, "task_arithmetic", False, members, members, members, 60, 8).run(
        no_progress
    )
    assert theirs["scores"] == ours["scores"] and theirs["retained"] == ours["retained"]
    assert theirs["path"] == "model" and theirs["bytes"] == ours["bytes"]
    assert mergekit.version in theirs["params"]


def test_what_the_command_says_when_it_fails_is_in_the_line(
    given: tuple[Any, tuple[Member, ...]], tmp_path: Path
) -> None:
    command = _script(tmp_path / COMMAND, "echo a trace >&2; echo 'RuntimeError: no such method' >&2; exit 1")
    line = OtherMerge(given[0], Mergekit(command, "0"), "ties", given[1], 60).run(no_progress)
    assert line["refused"] == "RuntimeError: no such method"


def test_without_a_command_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [tool.name for tool in tools_of(None, Console())] == ["peft"]
    (printed,) = capsys.readouterr().out.splitlines()
    assert "mergekit's rows are left out" in printed and "pip install mergekit==0.1.5" in printed
    with pytest.raises(Missing, match="no command .*elsewhere is found"):
        Mergekit.find(tmp_path / "elsewhere")


def test_a_command_whose_package_is_broken_is_as_good_as_none(tmp_path: Path) -> None:
    _script(tmp_path / COMMAND, "exit 0")
    _script(tmp_path / "python", "echo 'ModuleNotFoundError: mergekit' >&2; exit 1")
    with pytest.raises(Missing, match="does not run, ModuleNotFoundError: mergekit"):
        Mergekit.find(tmp_path / COMMAND)


def test_any_of_its_commands_finds_the_one_that_is_run(tmp_path: Path) -> None:
    _script(tmp_path / "python", "echo 0.1.5")
    command, named = _script(tmp_path / COMMAND, "exit 0"), _script(tmp_path / "mergekit-yaml", "exit 0")
    assert Mergekit.find(named) == Mergekit(command, "0.1.5")


def _script(file: Path, text: str) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    file.chmod(0o755)
    return file.resolve()


# --- the command


def test_the_benchmark_prints_them_beside_ours_and_asks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality_merging, "QUICK", SMALL)
    monkeypatch.setattr(quality_merging, "METHODS", {name: OURS[name] for name in ("task_arithmetic", "linear")})
    monkeypatch.setattr(text, "HELD_OUT", 8)
    monkeypatch.setattr(text_cases, "RECIPE", text.Training(epochs=1, learning_rate=3e-3))
    for task, sign in (("craft", "good"), ("mood", "red")):
        _write_task(tmp_path / "tasks" / task, sign)
    backbone, cache = pico.bert_encoder(tmp_path / "backbone"), tmp_path / "cache"
    arguments = ["--tasks", str(tmp_path / "tasks"), "--backbone", str(backbone), "--cache", str(cache)]
    arguments += ["--workers", "1", "--quick", "--mergekit", str(tmp_path / "none")]
    main(arguments)
    assert "mergekit's rows are left out" in capsys.readouterr().out
    file = cache / "merging-quick.jsonl"
    written = file.read_bytes()
    results = load(file)
    theirs = [line["method"] for line in results.parts["all"] if line.get("tool") == "peft"]
    assert sorted(theirs) == sorted(METHODS)
    kept = {line["method"]: line["average_retained"] for line in results.parts["all"] if line["source"] == "full"}
    (row,) = [row for row in markdown(results).splitlines() if row.startswith("| linear |")]
    assert f"| linear | {kept['linear']:.1f} | " in row
    assert f"| method | patchbay | peft rank {RANK} |" in markdown(results)
    main(arguments)
    assert file.read_bytes() == written


def _write_task(folder: Path, sign: str) -> None:
    """Whether the word is there is the label."""
    folder.mkdir(parents=True)
    others = [word for word in pico.WORDS if word != sign]
    for name, count in (("train", 80), ("test", 20)):
        rows = [f"{number % 2}\tthe {sign if number % 2 else others[number % 9]} film" for number in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n", "utf-8")
