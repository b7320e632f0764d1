"""An audio encoder for small corpora, trained from nothing: cepstra, pitch and voicing, and one convolution on them."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.augment import SpecAugment
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, require_random
from fourm_ser.encoders.frontends import ProsodyFrames
from fourm_ser.errors import InputError

LIFTER = 22  # of HTK: brings the cepstral coefficients to like variances


def liftered_cosines(mels: int, cepstra: int) -> Tensor:
    """The matrix (mels, cepstra) that makes liftered cepstral coefficients of log-mel bands (HTK's, orthonormal).

    The coefficients are brought to the size of one by fixed numbers, c0 by another than the rest.
    """
    coefficient = torch.arange(cepstra, dtype=torch.float64)
    band = torch.arange(mels, dtype=torch.float64)[:, None]
    cosines = torch.cos(math.pi / mels * (band + 0.5) * coefficient) * math.sqrt(2 / mels)
    cosines[:, 0] /= math.sqrt(2)
    lifter = 1 + LIFTER / 2 * torch.sin(math.pi * coefficient / LIFTER)
    scale = torch.where(coefficient == 0, 20.0, 12.0)
    return (cosines * lifter / scale).float()


class ProsodyStem(nn.Module):
    """Cepstra, pitch and voicing of each frame, what one convolution makes of them, and whether it is voiced.

    The cosines (mels, cepstra) make cepstra of mel bands; training moves the pitch by `pitch_shift` octaves at most.
    """

    cosines: Tensor

    def __init__(
        self, *, augment: SpecAugment, cosines: Tensor, convolution: nn.Conv1d, dropout: float, pitch_shift: float
    ) -> None:
        super().__init__()
        self.pitch_shift, self.augment, self.convolution = pitch_shift, augment, convolution
        self.register_buffer("cosines", cosines, persistent=False)
        self.layers = nn.Sequential(nn.LayerNorm(convolution.out_channels), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, mels + 2), `lengths` (batch,) -> features (batch, time, cepstra + channels + 3)."""
        frames, lengths = inputs["frames"], inputs["lengths"]
        changes = self.augment.training  # each row draws its own speed, vocal tract and pitch
        if changes and self.augment.stretch:
            frames, lengths = self.augment.change_speed(frames, lengths)
        mask = length_mask(lengths, frames.shape[1])
        bands, pitch, voicing = torch.split(frames, [len(self.cosines), 1, 1], dim=2)
        if changes and self.augment.shift:
            bands = self.augment.move(bands)
        if changes and self.pitch_shift:
            pitch = pitch + self.pitch_shift * (2 * torch.rand(len(pitch), 1, 1, device=pitch.device) - 1)
        # Where nothing is voiced the highest autocorrelation is no pitch: it counts by how voiced the frame is.
        voiced = ((voicing - 0.4) / 0.4).clamp(0, 1)
        own = torch.cat([bands @ self.cosines, 2 * pitch * voiced, (voicing - 0.5) / 0.3], dim=2)
        own = own * mask[..., None]  # see `zero_padding`
        hidden = self.layers(self.convolution(own.transpose(1, 2)).transpose(1, 2))
        return Features(torch.cat([own, hidden, voiced], dim=2), mask)


class ProsodyCnn(Encoder):
    """Cepstra, pitch and voicing a frame, beside what one convolution makes of them; all of it is the stem.

    A few thousand weights: it learns from some hundred utterances, where deeper networks over spectrograms remember
    them. What carries it are the statistics of its frames over an utterance: see `StatisticsFusion`. The last feature,
    from 0 to 1, is whether the frame is voiced.

    Args:
        name: The encoder's name in the store and in the log.
        weights: `random`, as the architecture has no pretrained weights.
        init_seed: Seed of the random weights.
        cepstra: Cepstral coefficients of a frame, the level among them.
        channels: Output channels of the convolution.
        kernel: Width of the convolution in frames, an odd number.
        dropout: Share of the convolution's features that training drops.
        stretch: Share by which training makes an utterance longer or shorter at most.
        shift: Mel bands by which training moves the spectrum up or down at most.
        pitch_shift: Octaves by which training moves an utterance's pitch at most.
        frontend: From waveforms to log-mel frames with their pitch and voicing.
        resources: Not used.

    Raises:
        InputError: Other weights than `random`, more cepstra than bands, an even kernel, a negative shift, numbers
            that `SpecAugment` refuses.
    """

    modality: ClassVar[str] = "audio"
    stem: ProsodyStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        cepstra: int,
        channels: int,
        kernel: int,
        dropout: float,
        stretch: float,
        shift: float,
        pitch_shift: float,
        frontend: ProsodyFrames,
        resources: Resources,
    ) -> None:
        super().__init__()
        own = {"cepstra": cepstra, "kernel": kernel, "pitch_shift": pitch_shift, "frontend": frontend}
        self.check({"name": name, "weights": weights, **own})
        mels = frontend.mels
        self.name = name
        self.weights = weights
        self.frontend = frontend
        augment = SpecAugment(
            stretch=stretch, shift=shift, time_masks=0, time_share=0.0, band_masks=0, band_width=0, bands=mels
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            self.stem = ProsodyStem(
                augment=augment,
                cosines=liftered_cosines(mels, cepstra),
                convolution=nn.Conv1d(cepstra + 2, channels, kernel, padding=kernel // 2),
                dropout=dropout,
                pitch_shift=pitch_shift,
            )
        self.top = nn.Identity()
        self.stem_dim = self.dim = cepstra + channels + 3

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        require_random(arguments["weights"], arguments["name"])
        cepstra, kernel, pitch_shift = (arguments[key] for key in ("cepstra", "kernel", "pitch_shift"))
        mels = arguments["frontend"].mels
        if not 1 <= cepstra <= mels:
            raise InputError(f"encoder.audio.cepstra={cepstra}: expected from 1 to encoder.audio.frontend.mels={mels}.")
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"encoder.audio.kernel={kernel}: expected an odd number of frames.")
        if pitch_shift < 0:
            raise InputError(f"encoder.audio.pitch_shift={pitch_shift}: expected a number of octaves from 0.")

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return int(arguments["cepstra"]) + int(arguments["channels"]) + 3

    def blocks(self) -> list[nn.Module]:
        """The convolution and its norm, as one."""
        return [nn.ModuleList([self.stem.convolution, self.stem.layers])]

    def describe(self) -> dict[str, Any]:
        """How many cepstra: the convolution's shape tells it, the lifter and the scale it does not."""
        return {"cepstra": self.stem.cosines.shape[1], "lifter": LIFTER}
