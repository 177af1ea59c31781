"""`patchbay neuript`: EEG backbones and their fine-tunes."""

from __future__ import annotations

import typer

from patchbay_server.commands.finetune import finetune
from patchbay_server.commands.pretrain import pretrain

neuript = typer.Typer(name="neuript", help="Train EEG backbones (NeurIPT) and fine-tune them.", no_args_is_help=True)
for command in (pretrain, finetune):
    neuript.command()(command)
