"""What the kinds of jobs do. The library's functions are called here and nowhere else in this package."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchbay.compress.calibration import Calibration
from patchbay.compress.compress import Report
from patchbay.compress.compress import compress as library_compress
from patchbay.compress.options import Options
from patchbay.compress.search import Evaluation
from patchbay.compress.transfer import transfer as library_transfer
from patchbay.errors import StoreError, StoreFull
from patchbay.store.audit import Entry
from patchbay.store.base import DeltaRecord, Digest
from patchbay.store.hub import Hub
from patchbay_server.jobs.base import Json
from patchbay_server.jobs.files import lay_out, lay_out_calibration
from patchbay_server.jobs.inputs import check_inputs
from patchbay_server.jobs.publish import Base, publish
from patchbay_server.jobs.run import Run
from patchbay_server.json_values import finite
from patchbay_server.records import to_json
from patchbay_server.schemas import CompressionRequest, TransferRequest

logger = logging.getLogger("patchbay_server.jobs")
COMPRESSION = "compression"
TRANSFER = "transfer"
# What of a request is not the library's business.
_OURS = frozenset({"name", "files", "calibration", "labels", "activate"})


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a worker works: the store that results go to, the base, and the cap of a delta's size."""

    hub: Hub
    base: Base
    max_bytes: int


def make_options(request: CompressionRequest) -> Options:
    """The library's options; what the request leaves out is the library's default.

    Raises InvalidRecipe, and InputError where options and inputs do not go together.
    """
    given = {name: value for name, value in request.model_dump(exclude=set(_OURS)).items() if value is not None}
    options = Options(**given)
    check_inputs(options, request.calibration, request.labels)
    return options


def compression(bench: Bench, run: Run) -> Json:
    """A fine-tune from blobs -> a delta in the store."""
    request = CompressionRequest.model_validate(run.job.spec["request"])
    bench.base.check(run.job.spec["fingerprint"])
    with _folder(bench.hub) as folder:
        # Named like the delta and not by chance: the file says what it was made of, and must be the same every time.
        # A folder of its own, because any name may be asked for.
        (folder / "finetuned").mkdir()
        finetuned = lay_out(bench.hub, request.files, folder / "finetuned" / request.name)
        inputs = _read(bench.hub, request.calibration, request.labels, folder / "inputs")
        out = folder / "delta.safetensors"
        report = _compress(bench.base, finetuned, out, make_options(request), inputs, run)
        run.check()
        where: dict[str, Any] = {"tenant": run.job.tenant, "activate": request.activate, "max_bytes": bench.max_bytes}
        record = publish(bench.hub, bench.base, out, request.name, **where)
        _note(bench.hub, run, record)
    # The file's own place is the worker's business, and gone.
    shown = {name: value for name, value in report.to_dict().items() if name != "path"}
    return {"delta": to_json(record), "report": finite(shown)}


def _note(hub: Hub, run: Run, record: DeltaRecord) -> None:
    """Into the audit log; where that cannot be written, the job has done its work all the same."""
    made = f"{record.name}@{record.version}"
    entry = Entry(time.time(), record.tenant, f"job {run.job.id}", "publish", made, "done")
    try:
        hub.catalog.audit.append(entry)
    except StoreError as error:
        logger.error("not in the audit log (%s): %s", error.message, entry)


@contextmanager
def _folder(hub: Hub) -> Iterator[Path]:
    """Where one job works; it leaves nothing behind. A full disk is the store's failure, not a bug."""
    folder = hub.blobs.new_folder()
    try:
        yield folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFull(f"no space left at {folder}: free some or delete deltas, then try again") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(hub: Hub, inputs: Digest | None, labels: Digest | None, folder: Path) -> Calibration | None:
    """Inputs, and their labels where there are some, from blobs by way of a new `folder`. Raises InputError."""
    if inputs is None:
        return None
    lay_out(hub, {"labels.txt": labels} if labels else {}, folder)
    return Calibration.read(lay_out_calibration(hub, inputs, folder), folder / "labels.txt" if labels else None)


def _compress(base: Base, finetuned: Path, out: Path, options: Options, inputs: Calibration | None, run: Run) -> Report:
    """The one call of the library: a search goes on from the evaluations that earlier attempts have made."""
    if inputs is not None:
        run.expect(options.evaluations)
    return library_compress(
        base.checkpoint.folder,
        finetuned,
        out,
        options,
        calibration=inputs,
        on_progress=run.on_progress,
        history=_history(run),
        on_evaluation=lambda evaluation: run.on_evaluation(evaluation.point, evaluation.score),
    )


def _history(run: Run) -> Sequence[Evaluation]:
    return [Evaluation(tuple(entry["point"]), entry["score"]) for entry in run.history]


def transfer(bench: Bench, run: Run) -> Json:
    """A delta and scales -> the curve of target score against retained score."""
    request = TransferRequest.model_validate(run.job.spec["request"])
    bench.base.check(run.job.spec["fingerprint"])
    file = bench.hub.open_blob(run.job.spec["digest"])
    with _folder(bench.hub) as folder:
        inputs = _read(bench.hub, request.calibration, request.labels, folder / "inputs")
        assert inputs is not None, "the request names them"
        retained = _read(bench.hub, request.retained, request.retained_labels, folder / "retained")
        curve = library_transfer(
            bench.base.checkpoint.folder,
            file,
            request.scales,
            calibration=inputs,
            retained=retained,
            on_progress=run.on_progress,
        )
    return {"model": request.model, "curve": finite(asdict(curve))}
