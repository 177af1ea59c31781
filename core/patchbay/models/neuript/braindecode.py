"""NeurIPT in the manner of braindecode's models: windows in volts in, logits out, channels as MNE describes them.

What the model's config says of channels is done to every window, what it says of time to a recording before it is cut.
Knows nothing of braindecode itself and of files.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from patchbay.errors import InputError
from patchbay.models.neuript.channels import (
    Dropped,
    check_coverage,
    chosen,
    derived,
    lacking,
    placed,
    shown_lacking,
    without_flat,
)
from patchbay.models.neuript.chs_info import ChsInfo, own_places
from patchbay.models.neuript.classification import NeurIPTForEEGClassification
from patchbay.models.neuript.companding import compand
from patchbay.models.neuript.montage import Montage
from patchbay.models.neuript.preprocess import filtered, resampled
from patchbay.models.neuript.recording import (
    DEAD_UV,
    MICROVOLTS,
    PLAUSIBLE_UV,
    Recording,
    check_unit,
    checked,
    listed,
)
from patchbay.models.neuript.steps import RATE, Steps

UV_PER_VOLT = MICROVOLTS["V"]
LOUDEST_V = 10 * PLAUSIBLE_UV[1] / UV_PER_VOLT  # a window may be one artefact, which a recording is not


class BraindecodeModel(nn.Module):
    """Its parameters are those of `model`, which is not copied: `model.save_pretrained` writes the ordinary folder.

    `steps`: what the model's config says of its input.
    """

    def __init__(self, model: NeurIPTForEEGClassification, chs_info: ChsInfo, n_times: int) -> None:
        super().__init__()
        self.model = model
        self.chs_info = list(chs_info)
        self.n_times = n_times
        self.steps = Steps.of(model.config.preprocessing or {})
        trained = round(self.steps.window_seconds * RATE)
        if model.config.preprocessing and n_times != trained:
            text = f"n_times is {n_times}, and the model was trained on windows of {trained} samples"
            warnings.warn(text, stacklevel=3)
        mixing, montage = _read(chs_info, self.steps)
        # Not buffers: `bfloat16()` would round millimetres.
        self._mixing = torch.from_numpy(mixing).float()
        self._positions, self._lobes = montage.positions, montage.lobes

    @property
    def n_outputs(self) -> int:
        return int(self.model.config.num_labels or 0)

    @property
    def n_chans(self) -> int:
        return len(self.chs_info)

    @property
    def sfreq(self) -> float:
        return float(RATE)

    @property
    def input_window_seconds(self) -> float:
        return self.n_times / RATE

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return 1, self.n_chans, self.n_times

    def get_output_shape(self) -> tuple[int, ...]:
        return 1, self.n_outputs

    def forward(self, x: torch.Tensor, return_features: bool = False) -> Any:
        """Of `x` [B, n_chans, T] in volts, T being n_times or any other length: logits [B, n_outputs], or
        {"features": [B, levels * 5 * width], what the head reads, "cls_token": None}.

        Raises InputError for another shape, and for NaN and infinity; warns where T is not n_times, where x cannot be
        in volts, and of a channel that is flat.
        """
        signal = compand(self._mixing.to(x.device) @ self._checked(x).float() * UV_PER_VOLT)
        positions, lobes = (each.to(x.device).expand(len(x), -1, -1) for each in (self._positions, self._lobes))
        if not return_features:
            return self.model(signal, positions, lobes).logits
        levels = self.model.neuript(signal, positions).hidden_states
        return {"features": self.model.features(levels, lobes), "cls_token": None}

    def prepared(self, recording: npt.ArrayLike, sfreq: float) -> npt.NDArray[np.float64]:
        """A whole recording [n_chans, samples] in volts at `sfreq` -> [n_chans, samples] in volts at 64 Hz, to be cut
        into windows: filtered as the model's config says and the server does.

        Raises InputError for another number of channels, for a rate below 40 Hz, for NaN, for what is not in volts, and
        for a channel that is flat, which the server leaves out of the answer.
        """
        names = tuple(channel["ch_name"] for channel in self.chs_info)
        given = checked(Recording(np.asarray(recording, np.float64), sfreq, names, "V"))
        found, dropped = filtered(given.signal, sfreq, self.steps, []), Dropped()
        check_unit(found, names, "V")
        without_flat(found, names, dropped)
        if dropped:
            text = f"{listed(list(dropped))}: flat; leave it out, with raw.drop_channels, of chs_info too"
            raise InputError(text, param="recording")
        return resampled(found, sfreq, []) / UV_PER_VOLT

    def reset_head(self, n_outputs: int) -> None:
        """A new head of the same kind, with random weights; names and priors of the old classes are forgotten.

        Optimisers made before hold the old head. Raises InputError for fewer than two outputs.
        """
        if n_outputs < 2:
            raise InputError(f"{n_outputs} outputs are no classes: give 2 or more", param="n_outputs")
        old = self.model.classifier
        head = _like(old, 1 if n_outputs == 2 else n_outputs)
        for layer in head.modules():
            self.model._init_weights(layer)
        self.model.classifier = head.to(next(old.parameters()))
        config = self.model.config
        config.id2label = {number: f"LABEL_{number}" for number in range(n_outputs)}
        config.label2id = {name: number for number, name in config.id2label.items()}
        config.label_priors = None

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[1] != self.n_chans or not x.numel():
            wanted = f"[batch, {self.n_chans}, {self.n_times}]"
            raise InputError(f"x has the shape {list(x.shape)}, and is to have {wanted}", param="x")
        if not torch.compiler.is_compiling():
            _check_finite(x)
            self._warn(x.detach().float())
        return x

    def _warn(self, x: torch.Tensor) -> None:
        if x.shape[2] != self.n_times:
            text = f"x has {x.shape[2]} samples and n_times is {self.n_times}: any length is read, and is it meant?"
            warnings.warn(text, stacklevel=4)
        typical = float(x.abs().median())
        if typical > LOUDEST_V:
            text = f"x is typically {typical:.3g} V, which no EEG is: give volts, as MNE does (1 uV is 1e-6)"
            warnings.warn(text, stacklevel=4)
        empty = int(((x.amax(2) - x.amin(2)) * UV_PER_VOLT < DEAD_UV).all(1).sum()) if x.shape[2] > 1 else 0
        if empty:
            text = f"{empty} of {len(x)} windows have nothing recorded in any channel: leave them out"
            warnings.warn(text, stacklevel=4)
        flat = ((x.amax((0, 2)) - x.amin((0, 2))) * UV_PER_VOLT < DEAD_UV).tolist()
        if any(flat) and not all(flat) and x.shape[2] > 1:
            names = listed([one["ch_name"] for one, is_flat in zip(self.chs_info, flat, strict=True) if is_flat])
            text = f"{names}: flat in every window, and read as if recorded: leave it out of chs_info and x"
            warnings.warn(text, stacklevel=4)


def as_braindecode(
    model: NeurIPTForEEGClassification,
    *,
    chs_info: ChsInfo,
    sfreq: float,
    n_times: int | None = None,
    input_window_seconds: float | None = None,
) -> BraindecodeModel:
    """`model` as braindecode's loops call theirs: x [B, n_chans, n_times] in volts, as MNE has it, at `sfreq`.

    Windows are put into the model's order of channels, referenced and made into pairs as its config says under
    `preprocessing`, scaled to microvolts and companded. What takes time to settle is done before recordings are cut,
    since a window that is filtered alone differs from the same stretch of a filtered recording: `prepared` of what is
    returned does it, to the same numbers as the server; MNE's raw.filter(.1, 30, method="iir").resample(64,
    method="polyphase"), with a notch_filter before it where the config has the mains, does to hundredths of a
    microvolt. In training, braindecode's losses leave out the one that balances the experts.

    `chs_info`: MNE's info["chs"], of which `ch_name` says where a channel is, or, where the 10-05 system has no such
    name, `loc`. Of `n_times` and `input_window_seconds` one is enough. Warns where channels are lacking that the model
    was trained on, and where windows are longer or shorter than its. Raises InputError for another rate, for two
    lengths that differ, for a channel that is no EEG, for one without a place, for one that the model does not read,
    and where all of a lobe are lacking that it reads.
    """
    if sfreq != RATE:
        steps = Steps.of(model.config.preprocessing or {})
        low, high = steps.band_hz
        notch = "" if steps.line_hz is None else f".notch_filter({steps.line_hz:g}, method='iir')"
        raise InputError(
            f"the model reads {RATE} Hz, and sfreq is {sfreq:g}: resample the recordings first, by the module's "
            "prepared(raw.get_data(), raw.info['sfreq']), or with MNE's "
            f"raw.filter({low:g}, {high:g}, method='iir'){notch}.resample({RATE}, method='polyphase')",
            param="sfreq",
        )
    return BraindecodeModel(model, chs_info, _length(n_times, input_window_seconds))


def _read(chs_info: ChsInfo, steps: Steps) -> tuple[npt.NDArray[np.float64], Montage]:
    """The matrix [read, n_chans] that makes of the channels those that the model reads, and where these are."""
    own, dropped = own_places(chs_info), Dropped()
    names = [channel["ch_name"] for channel in chs_info]
    rows, kept = chosen(np.eye(len(names)), names, own, steps, dropped)
    others = [name for name in names if name not in kept]
    if others:
        raise InputError(
            f"of these {len(names)} channels the model reads {listed(kept)}, and not {listed(others)}: pick those, "
            f"raw.pick({kept})",
            param="chs_info",
        )
    mixing, made = derived(rows, kept, steps, dropped, [])
    montage = placed(made, own)
    check_coverage(steps, montage, dropped)
    missing = lacking(steps, montage, dropped)
    if missing:
        warnings.warn(shown_lacking(steps, missing, dropped), stacklevel=4)
    return mixing, montage


def _check_finite(x: torch.Tensor) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        window, channel, sample = (~finite).nonzero()[0].tolist()
        text = (
            f"window {window} of x has NaN or infinity in channel {channel} at sample {sample}: leave such windows out"
        )
        raise InputError(text, param="x")


def _length(n_times: int | None, seconds: float | None) -> int:
    """In samples."""
    if n_times is None and seconds is None:
        raise InputError("how long a window is, is not given: give n_times or input_window_seconds", param="n_times")
    if seconds is not None and not 0.5 / RATE < seconds < float("inf"):
        raise InputError(f"a window of {seconds:g} s is none", param="input_window_seconds")
    if n_times is not None and n_times < 1:
        raise InputError(f"a window of {n_times} samples is none", param="n_times")
    found = n_times if seconds is None else round(seconds * RATE)
    if n_times is not None and n_times != found:
        text = f"n_times is {n_times}, and {seconds:g} s at {RATE} Hz are {found} samples: give one of the two"
        raise InputError(text, param="n_times")
    assert found is not None
    return found


def _like(head: nn.Linear | nn.Sequential, outputs: int) -> nn.Linear | nn.Sequential:
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, outputs)
    first, squash, last = head
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return nn.Sequential(nn.Linear(first.in_features, first.out_features), squash, nn.Linear(last.in_features, outputs))
