"""What any model of EEG must be held against: the logarithms of each channel's power in four bands, and a linear
discriminant on them.

Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from patchbay.errors import InputError
from patchbay.models.neuript.companding import expand
from patchbay.models.neuript.steps import RATE
from patchbay.training.examples import Examples
from patchbay.training.metrics import Classes, Probabilities

BANDS_HZ = ((1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0))  # delta, theta, alpha, beta
FAINTEST = 1e-6  # in microvolts squared


def band_powers(companded: torch.Tensor) -> npt.NDArray[np.float64]:
    """Of windows [N, D, T]: ln of the mean power in each band, [N, D * 4], by a Hann-windowed spectrum."""
    signal = expand(companded.double()).numpy()
    shape = np.hanning(signal.shape[2])
    spectrum = np.abs(np.fft.rfft((signal - signal.mean(2, keepdims=True)) * shape, axis=2)) ** 2 / (shape**2).sum()
    rates = np.fft.rfftfreq(signal.shape[2], 1 / RATE)
    powers = [spectrum[:, :, (low <= rates) & (rates < high)] for low, high in BANDS_HZ]
    logs = [np.log(each.mean(2) + FAINTEST) for each in powers if each.shape[2]]
    return np.stack(logs, 2).reshape(len(signal), -1)


def discriminant(train: Sequence[Examples], classes: Classes, test: Sequence[Examples]) -> Probabilities:
    """Of the test windows, by a discriminant whose covariance is shrunk as far as Ledoit and Wolf say.

    Raises InputError where recordings differ in their channels: powers have no common columns then.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # type: ignore[import-untyped]  # noqa: PLC0415

    names = {tuple(channel.name for channel in one.source.windows.montage.channels) for one in (*train, *test)}
    if len(names) > 1:
        raise InputError("recordings differ in their channels", param="data")
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(_rows(train), classes)
    found: Probabilities = model.predict_proba(_rows(test))
    return found


def _rows(found: Sequence[Examples]) -> npt.NDArray[np.float64]:
    return np.concatenate([band_powers(one.source.windows.signal) for one in found])
