"""Which inputs a request must come with, said before anything is read. Knows no files and no HTTP.

Inputs are given or None, whatever they are named by: a path in a command, a blob in a request.
"""

from __future__ import annotations

from patchbay.compress.options import Options
from patchbay.errors import InputError, InvalidRecipe


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


def check_retained(retained: object, labels: object) -> None:
    """Raises InputError for labels of retained inputs that are not given."""
    if labels is not None and retained is None:
        raise InputError("retained_labels are those of the retained inputs: give those, too", param="retained_labels")
