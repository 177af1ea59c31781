"""From settings to handlers. Imports the library and all its weight: workers come here with their first job."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from patchbay_server.commands.quiet import silence_libraries
from patchbay_server.jobs.handlers import COMPRESSION, TRANSFER, Bench, compression, transfer
from patchbay_server.jobs.publish import Base
from patchbay_server.jobs.worker import Handler
from patchbay_server.logs import adopt_libraries
from patchbay_server.server import open_hub
from patchbay_server.settings import Settings


def open_handlers(settings: Settings) -> Mapping[str, Handler]:
    """Kind -> handler. Raises StoreUnavailable, UnsupportedBackbone."""
    silence_libraries()
    adopt_libraries()
    torch.set_num_threads(1)
    return make_handlers(open_bench(settings))


def open_bench(settings: Settings) -> Bench:
    base = Base(settings.base, settings.task)
    is_folder = Path(settings.base).expanduser().is_dir()
    name = base.checkpoint.folder.name if is_folder else settings.base
    return Bench(open_hub(settings, name), base, settings.max_upload_bytes)


def make_handlers(bench: Bench) -> Mapping[str, Handler]:
    return {
        COMPRESSION: partial(compression, bench),
        TRANSFER: partial(transfer, bench),
    }
