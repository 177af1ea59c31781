"""A server whose model fails, with a text in the message, as long as there is a file: `python failing.py BASE STORE
FILE TEXT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from patchbay.backbone import Backbone
from patchbay_server import server
from patchbay_server.settings import Settings


def main(base: Path, store: Path, file: Path, text: str) -> None:
    load = Backbone.load

    def fail(*_: object) -> None:
        if file.exists():
            raise ValueError(f"the model cannot read {text!r}")

    def with_hook(*given: Any, **options: Any) -> Backbone:
        backbone = load(*given, **options)
        getattr(backbone.model, backbone.model.base_model_prefix).register_forward_pre_hook(fail)
        return backbone

    Backbone.load = with_hook  # type: ignore[method-assign]
    server.serve(Settings(base=str(base), store=store, port=0, workers=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
