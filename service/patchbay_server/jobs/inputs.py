"""Which inputs a request must come with, said before anything is read. Knows no files and no HTTP.

Inputs are given or None, whatever they are named by: a path in a command, a blob in a request.
"""

from __future__ import annotations

from patchbay.compress.options import Options
from patchbay.errors import InputError, InvalidRecipe

DEFAULTS = Options()


def check_inputs(options: Options, calibration: object, labels: object) -> None:
    """Raises InvalidRecipe for options that need calibration inputs, InputError for labels that belong to nothing."""
    if calibration is None and (options.target_kl is not None or options.method == "scaled_magnitude"):
        what, param = (options.method, "method") if options.target_kl is None else ("target_kl", "target_kl")
        raise InvalidRecipe(f"{what} is measured on calibration inputs: give some", param=param)
    if labels is not None and calibration is None:
        raise InputError("labels are those of the calibration inputs: give those, too", param="labels")
    if (options.score == "kl") != (labels is None):
        raise InputError(
            "labels and a score that needs them (accuracy, balanced_accuracy, log_likelihood) go together",
            param="labels" if labels is None else "score",
        )
    _check_effect(options, calibration)


def _check_effect(options: Options, calibration: object) -> None:
    """Raises InvalidRecipe for an option that was changed and would change nothing."""
    changed = {name for name in ("evaluations", "optimizer") if getattr(options, name) != getattr(DEFAULTS, name)}
    if calibration is None and changed and options.evaluations:
        raise InvalidRecipe(f"{min(changed)}: there is no search without calibration inputs", param=min(changed))
    for name in ("support", "scope", "groups"):
        if options.method != "nps" and getattr(options, name) != getattr(DEFAULTS, name):
            raise InvalidRecipe(f"{name} is of the method nps: {options.method} has none", param=name)


def check_retained(retained: object, labels: object) -> None:
    """Raises InputError for labels of retained inputs that are not given."""
    if labels is not None and retained is None:
        raise InputError("retained_labels are those of the retained inputs: give those, too", param="retained_labels")
