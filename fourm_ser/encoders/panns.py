"""PANNs: Cnn14 over a log-mel spectrogram, frame by frame, exact under padding (Kong et al. 2020).

"PANNs: large-scale pretrained audio neural networks for audio pattern recognition", IEEE/ACM Transactions on Audio,
Speech and Language Processing 28, https://arxiv.org/abs/1912.10211, in its form for 16 kHz (Cnn14_16k of
https://github.com/qiuqiangkong/audioset_tagging_cnn; weights: https://zenodo.org/records/3987831).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, zero_padding
from fourm_ser.encoders.frontends import LogMelDecibels
from fourm_ser.encoders.official import load_official, official_file

WIDTHS = (64, 128, 256, 512, 1024, 2048)

# Names of the official file that are no part of the features: the front end's constants, and what comes behind the
# pooling over the clip.
UNUSED = ("spectrogram_extractor.", "logmel_extractor.", "fc1.", "fc_audioset.")


class ConvBlock(nn.Module):
    """Two convolutions with batch norm and ReLU, from `before` channels to `width`."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(batch, before, time, mels), zero behind each row's length -> (batch, width, time, mels), no longer so."""
        hidden = zero_padding(torch.relu(self.bn1(self.conv1(hidden))), lengths)
        return torch.relu(self.bn2(self.conv2(hidden)))


class Cnn14(nn.Module):
    """The network up to the pooling over the clip: six blocks with dropout, each but the last halving time and mels."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(LogMelDecibels.MELS)
        for number, (before, width) in enumerate(pairwise((1, *WIDTHS)), start=1):
            self.add_module(f"conv_block{number}", ConvBlock(before, width))
        self.dropout = nn.Dropout(dropout)

    @property
    def conv_blocks(self) -> list[nn.Module]:
        """The six blocks from input to output."""
        return [self.get_submodule(f"conv_block{number}") for number in range(1, len(WIDTHS) + 1)]

    def train(self, mode: bool = True) -> "Cnn14":
        """Batch norms stay in evaluation mode.

        Statistics of a batch are statistics of its padding, too, and of whatever neighbours an utterance has: what it
        is trained on would not be what it gets alone. The norms use AudioSet's running statistics throughout, and
        training moves their scales and shifts alone.
        """
        super().train(mode)
        for module in self.modules():
            # Whichever class of norm: Lightning turns them into others for several processes, and not quite back.
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (batch, time, 64), lengths (batch,) -> features (batch, time // 32, 2048), lengths // 32."""
        # bn0 norms mel bands as if they were channels: (batch, time, mels) -> (batch, mels, time, 1)
        hidden = self.bn0(frames.transpose(1, 2)[..., None])
        # -> (batch, 1, time, mels)
        hidden = zero_padding(hidden.permute(0, 3, 2, 1), lengths).contiguous(memory_format=torch.channels_last)
        *others, last = self.conv_blocks
        for block in others:
            hidden = nn.functional.avg_pool2d(block(hidden, lengths), kernel_size=2)
            lengths = lengths // 2
            # Alone, the pooling leaves out an odd last frame; here it is pooled with what stands behind it.
            hidden = self.dropout(zero_padding(hidden, lengths))
        hidden = self.dropout(last(hidden, lengths))
        # (batch, channels, time, mels) -> (batch, time, channels)
        return hidden.mean(3).transpose(1, 2), lengths

    def draw(self, seed: int) -> None:
        """Random weights as the original draws them: Xavier's; norms that change nothing."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


class PannsStem(nn.Module):
    """Cnn14's features of a batch."""

    def __init__(self, network: Cnn14) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, 64), `lengths` (batch,) -> features (batch, time // 32, 2048)."""
        features, lengths = self.network(inputs["frames"], inputs["lengths"])
        return Features(features, length_mask(lengths, features.shape[1]))


class PannsEncoder(Encoder):
    """Cnn14 for 16 kHz: 2048 features for each 0.32 s, the sequence that PANNs pools over the clip.

    Args:
        name: the encoder's name in the store and in the log.
        weights: `pretrained`, `random`, the official file, or a folder that holds it by its name.
        init_seed: seed of random weights.
        url: where the official file is.
        digest: what its sha256 begins with; None: it is not checked.
        dropout: dropout behind each block while the stem trains.
        resources: the cache.

    Raises:
        InputError: weights cannot be had, or do not fit: Cnn14's other sample rates have other mel filters.
    """

    modality: ClassVar[str] = "audio"
    stem: PannsStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        url: str,
        digest: str | None,
        dropout: float,
        resources: Resources,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.frontend = LogMelDecibels()
        with torch.device("meta"):  # 76 million weights that are drawn or read below
            network = Cnn14(dropout)
        network.to_empty(device="cpu")
        if weights == "random":
            network.draw(init_seed)
        else:
            path = official_file(weights, url=url, digest=digest, cache=resources.cache)
            constants = {"logmel_extractor.melW": self.frontend.power.mel_scale.fb}
            load_official(network, path, inside="model", ignore=UNUSED, constants=constants)
        self.stem, self.top = PannsStem(network), nn.Identity()
        self.stem_dim = self.dim = WIDTHS[-1]

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return WIDTHS[-1]

    def blocks(self) -> list[nn.Module]:
        """The norm of the mel bands and the six convolutional blocks."""
        return [self.stem.network.bn0, *self.stem.network.conv_blocks]
