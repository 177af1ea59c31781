"""Pre-training ends in a folder, and goes on to the identical one wherever it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.recordings import write_edf, write_npz

from patchbay.errors import InputError
from patchbay.models.neuript import NeurIPTForPreTraining
from patchbay.models.neuript.steps import Steps
from patchbay.training.checkpoint import state_of
from patchbay.training.pretrain import Options, Report, pretrain
from patchbay.training.windows import Batches, sources, split

OPTIONS = Options(size="test", epochs=1, rest=1, batch_size=4, report_every=2, save_every=1)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Batches, Batches]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [write_edf(folder / "x.edf", seconds=5, channels=3), write_npz(folder / "y.npz", seconds=5, channels=2)]
    first, second = split(sources(paths, Steps(window_seconds=0.5, rejects=False)), 0.2)
    return Batches(first), Batches(second)


class Stopped(Exception):
    pass


def test_it_ends_in_a_folder_that_transformers_reads(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    told: list[Report] = []
    last = pretrain(*parts, tmp_path, OPTIONS, told.append)
    assert last == told[-1] and last.step == last.steps == 2 * (len(parts[0]) // 4)
    assert [report.step for report in told] == [1, *range(2, last.steps, 2), last.steps]
    assert all(report.judged > 0 and report.zero == last.zero for report in told)
    model, state = NeurIPTForPreTraining.from_pretrained(tmp_path), load_file(tmp_path / "checkpoint/model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("after", [1, 3])
def test_it_goes_on_to_the_identical_end(parts: tuple[Batches, Batches], tmp_path: Path, after: int) -> None:
    whole = pretrain(*parts, tmp_path / "whole", OPTIONS, lambda _: None)
    with pytest.raises(Stopped):
        pretrain(*parts, tmp_path / "cut", OPTIONS, stopping(after))
    told: list[Report] = []
    again = pretrain(*parts, tmp_path / "cut", OPTIONS, told.append)
    assert told[0].step > 1, "it did not begin anew"
    assert (again.judged, again.zero) == (whole.judged, whole.zero)
    histories = [state.history for name in ("whole", "cut") if (state := state_of(tmp_path / name))]
    assert histories[0] == histories[1]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("after", [1, 3])
def test_who_says_so_stops_it_after_a_whole_step(parts: tuple[Batches, Batches], tmp_path: Path, after: int) -> None:
    """Between two reports, before the first checkpoint; and it goes on to the identical end."""
    seldom = replace(OPTIONS, save_every=200, report_every=2)
    pretrain(*parts, tmp_path / "whole", seldom, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        pretrain(*parts, tmp_path / "cut", seldom, lambda _: None, lambda done, _: done < after)
    kept, steps = state_of(tmp_path / "cut"), list[int]()
    assert kept is not None and kept.step == after

    def goes_on(done: int, of: int) -> bool:
        steps.append(done)
        return True

    last = pretrain(*parts, tmp_path / "cut", seldom, lambda _: None, goes_on)
    assert steps == list(range(after + 1, last.steps + 1))
    histories = [state.history for name in ("whole", "cut") if (state := state_of(tmp_path / name))]
    assert histories[0] == histories[1]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_loss_that_is_no_number(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss is nan in step [2-9].*: take a lower --rate"):
        pretrain(*parts, tmp_path, replace(OPTIONS, highest_rate=1e30), lambda _: None)
    assert not (tmp_path / "model.safetensors").exists()


def test_seeds_differ(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    reports = [pretrain(*parts, tmp_path / str(seed), replace(OPTIONS, seed=seed), lambda _: None) for seed in (1, 2)]
    assert reports[0].judged != reports[1].judged


def test_a_folder_that_was_begun_otherwise(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    pretrain(*parts, tmp_path, OPTIONS, lambda _: None)
    with pytest.raises(InputError, match="was begun with --epochs 1, and this asks for 3") as caught:
        pretrain(*parts, tmp_path, replace(OPTIONS, epochs=3), lambda _: None)
    assert caught.value.param == "epochs"
    with pytest.raises(InputError, match="was begun with --rate 0.0003, and this asks for 0.1"):
        pretrain(*parts, tmp_path, replace(OPTIONS, highest_rate=0.1), lambda _: None)
    with pytest.raises(InputError, match="was begun with --line-hz None, and this asks for 50.0"):
        pretrain(*parts, tmp_path, replace(OPTIONS, steps=Steps(line_hz=50.0)), lambda _: None)
    with pytest.raises(InputError, match="was begun with windows"):
        pretrain(parts[1], parts[1], tmp_path, OPTIONS, lambda _: None)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimiser.safetensors"])
def test_a_checkpoint_that_is_broken(parts: tuple[Batches, Batches], tmp_path: Path, file: str) -> None:
    pretrain(*parts, tmp_path, OPTIONS, lambda _: None)
    (tmp_path / "checkpoint" / file).write_bytes(b"broken")
    with pytest.raises(InputError, match="remove it to begin anew"):
        pretrain(*parts, tmp_path, OPTIONS, lambda _: None)


def test_the_last_checkpoint_is_found_between_two_renames(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    whole = pretrain(*parts, tmp_path, OPTIONS, lambda _: None)
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
    assert pretrain(*parts, tmp_path, OPTIONS, lambda _: None).judged == whole.judged


def test_fewer_windows_than_a_batch(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are fewer than a batch of 999"):
        pretrain(*parts, tmp_path, replace(OPTIONS, batch_size=999), lambda _: None)


def test_a_step_that_is_told_of_first_and_last(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    """However seldom reports are asked for: else a short run would have nothing to draw."""
    told: list[Report] = []
    pretrain(*parts, tmp_path, replace(OPTIONS, report_every=999), told.append)
    assert [report.step for report in told] == [1, told[0].steps] and told[0].loss == told[0].loss


def test_what_is_done_is_told_again(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    first, again = (pretrain(*parts, tmp_path, OPTIONS, lambda _: None) for _ in range(2))
    assert replace(first, seconds_left=0.0) == replace(again, seconds_left=0.0)


def test_nothing_is_written_over(parts: tuple[Batches, Batches], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is there already and not empty"):
        pretrain(*parts, tmp_path, OPTIONS, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / ".checkpoint.new").mkdir()  # stopped while the first was written
    assert pretrain(*parts, tmp_path, OPTIONS, lambda _: None).step > 0


def test_windows_of_many_channels_are_worked_through_some_at_a_time(
    parts: tuple[Batches, Batches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the identical end too, wherever it was stopped."""
    monkeypatch.setattr("patchbay.training.memory.BUDGET", 1 << 20)
    short = replace(OPTIONS, rest=0)
    pretrain(*parts, tmp_path / "whole", short, lambda _: None)
    with pytest.raises(Stopped):
        pretrain(*parts, tmp_path / "cut", short, stopping(2))
    pretrain(*parts, tmp_path / "cut", short, lambda _: None)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def stopping(after: int) -> Callable[[Report], None]:
    seen: list[Report] = []

    def stop(report: Report) -> None:
        seen.append(report)
        if len(seen) == after:
            raise Stopped

    return stop
