"""A small audio encoder: log-mel spectrogram, strided convolutions (the stem), bidirectional LSTM (the top)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio
from torch import nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, pad, require_random, zero_padding

SAMPLE_RATE = 16_000


class LogMel:
    """Front end: a waveform -> natural logarithm of its mel power spectrogram, level kept, scaled by fixed numbers.

    Args:
        mels: number of mel bands.
        window: length of the Hann window in samples; also the length that a shorter utterance is padded to.
        hop: step between frames in samples.
        low, high: range of the mel bands in Hz.
        mean, std: what frames are shifted and divided by: numbers, so that an utterance never depends on another.
    """

    def __init__(self, mels: int, window: int, hop: int, low: float, high: float, mean: float, std: float) -> None:
        self.arguments = {
            "mels": mels,
            "window": window,
            "hop": hop,
            "low": low,
            "high": high,
            "mean": mean,
            "std": std,
        }
        self.mean, self.std, self.window = mean, std, window
        self.spectrogram = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=window, hop_length=hop, f_min=low, f_max=high, n_mels=mels, center=False
        )

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, mels]."""
        samples = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        missing = self.window - len(samples)
        if missing > 0:
            samples = nn.functional.pad(samples, (0, missing))
        frames = torch.log(self.spectrogram(samples) + 1e-6).T
        return {"frames": ((frames - self.mean) / self.std).contiguous()}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`frames` (batch, time, mels) and `lengths` (batch,) in frames."""
        rows = [item["frames"] for item in items]
        return {"frames": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return self.arguments


class BidirectionalLSTM(nn.Module):
    """An LSTM in each direction over padded sequences, each row as if it were alone.

    Forwards, padding comes after all that counts. Backwards, each row's own frames are turned round in place, so that
    padding comes last there, too: several times as fast on a CPU as a packed sequence.

    Args:
        width: width of the input.
        hidden: units in each direction.
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
            back, _ = self.backwards(features.gather(1, turned.expand_as(features)))
        return Features(torch.cat([ahead, back.gather(1, turned.expand_as(back))], dim=-1), mask)


class MelLSTMStem(nn.Module):
    """Convolutions over log-mel frames (kernel 3, stride 2, ReLU), each halving the time axis.

    Args:
        widths: channels of the input and of each convolution's output.
    """

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
        name: the encoder's name in the store and in the log.
        weights: `random`: the architecture has no pretrained weights.
        init_seed: seed of the stem's random weights.
        channels: output channels of each convolution (kernel 3, stride 2, ReLU).
        hidden: units of the LSTM in each direction; features are twice as wide.
        layers: layers of the LSTM.
        mels, window, hop, low, high, mean, std: the spectrogram, see `LogMel`.
        resources: not used.

    Raises:
        InputError: other weights than `random`.
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
        mels: int,
        window: int,
        hop: int,
        low: float,
        high: float,
        mean: float,
        std: float,
        resources: Resources,
    ) -> None:
        super().__init__()
        require_random(weights, name)
        self.name = name
        self.weights = weights
        self.frontend = LogMel(mels, window, hop, low, high, mean, std)
        widths = [mels, *channels]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            self.stem = MelLSTMStem(widths)
        self.top = nn.Sequential(
            *(BidirectionalLSTM(widths[-1] if layer == 0 else 2 * hidden, hidden) for layer in range(layers))
        )
        self.stem_dim, self.dim = widths[-1], 2 * hidden

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return 2 * int(arguments["hidden"])

    def blocks(self) -> list[nn.Module]:
        """The convolutions."""
        return list(self.stem.convolutions)
