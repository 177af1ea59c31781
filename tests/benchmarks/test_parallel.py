from __future__ import annotations

import io
import multiprocessing
import os
from dataclasses import dataclass

import pytest
import torch
from benchmarks.parallel import OnProgress, Workers
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Square:
    number: int

    @property
    def title(self) -> str:
        return str(self.number)

    def run(self, on_progress: OnProgress) -> tuple[int, int, int]:
        if self.number < 0:
            raise ValueError("negative")
        on_progress(1, 1, "done")
        return self.number**2, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("count", [1, 2])
def test_jobs_run_in_processes_of_one_thread_and_raise_here(count: int) -> None:
    with pytest.raises(ValueError, match="negative"), Workers(count, _terminal()) as workers:
        results = list(workers.run("squares", [Square(number) for number in range(6)]))
        assert list(workers.run("nothing", [])) == []
        assert sorted(result[0] for result in results) == [0, 1, 4, 9, 16, 25]
        assert {result[2] for result in results} == {1}
        assert (os.getpid() in {result[1] for result in results}) == (count == 1)
        list(workers.run("one fails", [Square(-1), Square(2)]))
    assert not multiprocessing.active_children()


def _terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True)
