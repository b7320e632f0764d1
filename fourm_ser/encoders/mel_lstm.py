"""A small audio encoder: log-mel spectrogram, strided convolutions (the stem), bidirectional LSTM (the top)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, require_random, zero_padding
from fourm_ser.encoders.frontends import LogMel


class BidirectionalLSTM(nn.Module):
    """An LSTM in each direction over padded sequences, each row as if it were alone.

    Forwards, padding comes after all that counts. Backwards, each row's own frames are turned round in place, so that
    padding comes last there, too: several times as fast on a CPU as a packed sequence.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(width, hidden, batch_first=True)
        self.backwards = nn.LSTM(width, hidden, batch_first=True)

    def forward(self, sequence: Features) -> Features:
        """(batch, time, width) -> (batch, time, 2 * hidden)."""
        features, mask = sequence
        time = torch.arange(features.shape[1], device=features.device)
        turned = torch.where(mask, mask.sum(1, keepdim=True) - 1 - time, time)[..., None]  # its own inverse
        # In fp32 throughout: rounding adds up over the steps, and not every CPU has LSTM kernels in bf16.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            ahead, _ = self.forwards(features)
            back, _ = self.backwards(features.gather(1, turned.expand(-1, -1, features.shape[-1])))
        back = back.gather(1, turned.expand(-1, -1, back.shape[-1]))
        return Features(torch.cat([ahead, back], dim=-1), mask)


class MelLSTMStem(nn.Module):
    """Convolutions over log-mel frames (kernel 3, stride 2, ReLU) from width to width, each halving the time axis."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(widths)
        )

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, mels), `lengths` (batch,) -> features (batch, time / 2^convolutions, channels[-1])."""
        hidden, lengths = inputs["frames"].transpose(1, 2), inputs["lengths"]
        for convolution in self.convolutions:
            lengths = (lengths - 1) // 2 + 1
            hidden = zero_padding(torch.relu(convolution(hidden)), lengths)
        return Features(hidden.transpose(1, 2), length_mask(lengths, hidden.shape[-1]))


class MelLSTM(Encoder):
    """Convolutions over log-mel frames, each halving the time axis, then a bidirectional LSTM.

    The convolutions are the stem: random features of a few frames each while they are frozen. The LSTM is the top and
    trains in every stage.

    Args:
        name: The encoder's name in the store and in the log.
        weights: `random`, as the architecture has no pretrained weights.
        init_seed: Seed of the stem's random weights.
        channels: Output channels of each convolution (kernel 3, stride 2, ReLU).
        hidden: Units of the LSTM in each direction; features are twice as wide.
        layers: Layers of the LSTM.
        frontend: From waveforms to log-mel frames.
        resources: Not used.

    Raises:
        InputError: Other weights than `random`.
    """

    modality: ClassVar[str] = "audio"
    stem: MelLSTMStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        channels: Sequence[int],
        hidden: int,
        layers: int,
        frontend: LogMel,
        resources: Resources,
    ) -> None:
        super().__init__()
        self.check({"name": name, "weights": weights})
        self.name = name
        self.weights = weights
        self.frontend = frontend
        widths = [frontend.mels, *channels]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            self.stem = MelLSTMStem(widths)
        self.top = nn.Sequential(
            *(BidirectionalLSTM(widths[-1] if layer == 0 else 2 * hidden, hidden) for layer in range(layers))
        )
        self.stem_dim, self.dim = widths[-1], 2 * hidden

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        require_random(arguments["weights"], arguments["name"])

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return 2 * int(arguments["hidden"])

    def blocks(self) -> list[nn.Module]:
        """The convolutions."""
        return list(self.stem.convolutions)
