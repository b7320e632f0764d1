"""SpecAugment (Park et al. 2019, https://arxiv.org/abs/1904.08779) on the features of frozen encoders."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.encoders.augment import draw_share
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import pool
from fourm_ser.fusion.statistics import RunningScale
from fourm_ser.losses.base import at_least_float32


class FeatureMasks(nn.Module):
    """Hides spans of frames and spans of features, each utterance by itself, in training alone.

    Spectrograms are normalised before they are masked by zeros, their mean; features of encoders are not. Where a frame
    is hidden stands the mean of the utterance's own frames, and where a feature is hidden its mean over the utterances
    that training has shown so far: a statistic that a fusion then standardises is nothing unusual. The masks of an
    utterance are never all of its frames or all features.

    Args:
        modalities: whose features: any of `text`, `audio`.
        time: the share of an utterance's own frames in masked spans, if none overlap.
        time_length: frames of a span, at most; see `draw_share`.
        feature: the share of the features in masked spans, if none overlap.
        feature_length: features of a span, at most.

    Raises:
        InputError: another modality, or a number out of range.
    """

    def __init__(
        self, *, modalities: Sequence[str], time: float, time_length: int, feature: float, feature_length: int
    ) -> None:
        super().__init__()
        given = [modalities] if isinstance(modalities, str) else list(modalities)
        if isinstance(modalities, str) or len(set(given)) < len(given) or not set(given) <= {"text", "audio"}:
            shown = ", ".join(str(modality) for modality in given)
            raise InputError(f"augment.spec.modalities=[{shown}]: expected a list of any of text, audio, each once.")
        for key, share in (("time", time), ("feature", feature)):
            check_number(f"augment.spec.{key}", share, "a share from 0 to below 1", most=1, below=True)
        for key, length in (("time_length", time_length), ("feature_length", feature_length)):
            check_number(f"augment.spec.{key}", length, "a whole number, 1 or more", least=1, whole=True)
        self.modalities, self.time, self.feature = given, time, feature
        self.time_length, self.feature_length = time_length, feature_length
        self.means = nn.ModuleDict()

    @property
    def masks(self) -> bool:
        """Whether there is anything to mask."""
        return bool(self.modalities and (self.time or self.feature))

    def setup(self, dims: Mapping[str, int]) -> None:
        """Mask features of these widths by modality, and none of other modalities."""
        self.modalities = [modality for modality in self.modalities if modality in dims]
        self.means = nn.ModuleDict({name: RunningScale(dims[name]) for name in self.modalities if self.feature})

    def forward(self, encoded: Mapping[str, Features]) -> dict[str, Features]:
        """What the encoders give of a batch -> the same, masked."""
        return {
            modality: self._mask(modality, given) if self.training and modality in self.modalities else given
            for modality, given in encoded.items()
        }

    def _mask(self, modality: str, given: Features) -> Features:
        features, mask = given
        batch, frames, width = features.shape
        mean = pool(Features(at_least_float32(features), mask), "mean")  # (batch, dim)
        if self.time:
            hidden = draw_share(mask.sum(1), frames, share=self.time, length=self.time_length)
            features = torch.where(hidden[..., None], mean[:, None].to(features.dtype), features)
        if self.feature:
            scale = self.means[modality]
            scale(mean)
            usual: Tensor = scale.mean  # type: ignore[assignment]
            lengths = torch.full((batch,), width, device=features.device)
            hidden = draw_share(lengths, width, share=self.feature, length=self.feature_length)
            features = torch.where(hidden[:, None], usual.to(features.dtype), features)
        return Features(features, mask)
