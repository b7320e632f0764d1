"""openSMILE's functionals as an audio encoder: numbers that experts of phonetics chose, one vector an utterance."""

import importlib.metadata
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.checks import check_word
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources
from fourm_ser.encoders.frontends import padded
from fourm_ser.errors import InputError

SETS = ("eGeMAPSv02", "GeMAPSv01b", "ComParE_2016")
SHORTEST = SAMPLE_RATE // 10  # samples: of less openSMILE computes nothing


def require_opensmile(key: str) -> None:
    """Refuse what a config's `key` asks for where openSMILE is not installed."""
    try:
        import opensmile  # noqa: F401
    except ImportError as error:
        raise InputError(f'{key}: opensmile is not installed ({error}): pip install "fourm_ser[opensmile]"') from error


@cache
def _smile(feature_set: str) -> Any:
    """The extractor, one a process."""
    import opensmile

    level = opensmile.FeatureLevel.Functionals
    return opensmile.Smile(feature_set=opensmile.FeatureSet[feature_set], feature_level=level)


class FunctionalsFrontend:
    """From a waveform to one of openSMILE's sets of functionals, by its name there."""

    def __init__(self, feature_set: str) -> None:
        self.feature_set = feature_set

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `functionals` [numbers]; one under 0.1 s is followed by silence to it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries that openSMILE imports
            found = _smile(self.feature_set).process_signal(padded(raw, SHORTEST).numpy(), SAMPLE_RATE)
        return {"functionals": torch.tensor(found.to_numpy(dtype=np.float32)[0])}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`functionals` (batch, numbers)."""
        return {"functionals": torch.stack([item["functionals"] for item in items])}

    def describe(self) -> dict[str, Any]:
        return {"feature_set": self.feature_set, "opensmile": importlib.metadata.version("opensmile")}


class FunctionalsStem(nn.Module):
    """What the front end computed, as one frame."""

    def forward(self, inputs: Inputs) -> Features:
        """`functionals` (batch, numbers) -> features (batch, 1, numbers)."""
        values: Tensor = inputs["functionals"][:, None]
        return Features(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


class FunctionalsEncoder(Encoder):
    """Functionals of openSMILE (Eyben et al. 2010), such as the 88 of eGeMAPS (Eyben et al. 2016): no weights at all.

    openSMILE is free for research alone: its licence has to be bought for products.

    Args:
        name: The encoder's name in the store and in the log.
        feature_set: One of `SETS`.
        resources: Not used.

    Raises:
        InputError: openSMILE is not installed, or does not know the set.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, name: str, feature_set: str, resources: Resources) -> None:
        super().__init__()
        check_word("baseline.encoder.feature_set", feature_set, SETS)
        require_opensmile(f"feature_set={feature_set}")
        self.name, self.weights = name, "none"
        self.frontend = FunctionalsFrontend(feature_set)
        self.stem, self.top = FunctionalsStem(), nn.Identity()
        self.stem_dim = self.dim = len(_smile(feature_set).feature_names)

    def blocks(self) -> list[nn.Module]:
        return [self.stem]
