"""Keeps other libraries' progress bars and log lines out of the commands' output."""

from __future__ import annotations


def silence_libraries() -> None:
    """transformers and huggingface_hub: errors only, no bars. Imports both, so only for commands that need them."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
