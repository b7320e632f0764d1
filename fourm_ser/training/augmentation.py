"""What the config's `augment` says: what training changes at random of utterances."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fourm_ser.config import build
from fourm_ser.data.waveforms import Waveforms
from fourm_ser.errors import InputError
from fourm_ser.models.network import EmotionNetwork, pooling_of
from fourm_ser.models.sources import Variation
from fourm_ser.training.masks import FeatureMasks
from fourm_ser.training.stages import Stage

log = logging.getLogger(__name__)


class Augmentation(NamedTuple):
    """What training changes at random.

    Attributes:
        mixup: Alpha of the Beta distribution that shares of mixed utterances are drawn from; 0 for none are mixed.
        spec: The config's masks on features; None for none.
        variation: How recordings are changed; None for not at all.
    """

    mixup: float = 0.0
    spec: Any = None
    variation: Variation | None = None

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """That of a run, by its resolved config; of records that say nothing of it, none.

        Raises:
            InputError: copies of what nothing changes, a number out of range, a transform that is not installed.
        """
        node = config.get("augment")
        if node is None:
            return cls()
        build(node.spec)  # it says what is wrong
        waveforms = _build_waveforms(node.waveform)
        if waveforms is None and node.copies:
            raise InputError(
                f"augment.copies={node.copies}: nothing says how the copies differ. Add augment=waveform, or leave "
                "augment.copies at 0."
            )
        variation = None if waveforms is None else Variation(waveforms, node.copies, node.seed, config.seed)
        return cls(float(node.mixup), node.spec, variation)

    def masks(self, network: EmotionNetwork) -> FeatureMasks | None:
        """Masks, with no memory yet, on the features of a network's stems that are frozen now; None for none."""
        masks: FeatureMasks | None = None if self.spec is None else build(self.spec)
        if masks is not None:
            masks.setup({name: encoder.dim for name, encoder in network.by_modality.items() if encoder.frozen})
        return masks if masks is not None and masks.masks else None

    def tell(self, config: DictConfig, stages: Sequence[Stage]) -> None:
        """Log what of it does nothing in a run of this config and these stages."""
        modalities = config.fusion.modalities
        masks: FeatureMasks | None = None if self.spec is None else build(self.spec)
        for stage in stages:
            frozen = [modality for modality in modalities if stage.unfreeze[modality] == "none"]
            if self.mixup and stage.batch_size == 1:
                said = f"batches of one utterance in stage {stage.name}: none is mixed"
                log.warning("augment.mixup=%s: %s", self.mixup, said)
            if masks is not None and masks.masks:
                masked = [modality for modality in masks.modalities if modality in frozen]
                pooled = {modality: pooling_of(config, modality) for modality in masked}
                if not masked:
                    said = f"of {', '.join(masks.modalities)} in stage {stage.name}: nothing is masked"
                    log.info("augment.spec: no features of frozen encoders %s", said)
                for modality, pooling in pooled.items():
                    if masks.time and pooling != "none":
                        said = f"encode.pool={pooling} leaves one frame of {modality} an utterance: none is masked"
                        log.warning("augment.spec.time=%s: %s", masks.time, said)
            if self.variation is not None and "audio" in frozen and not self.variation.copies:
                log.warning("augment.copies=0: stage %s hears recordings as they are: its audio is frozen", stage.name)
        if self.variation is not None and "audio" not in modalities:
            log.warning("augment.waveform: changes nothing: the fusion reads no audio")


def _build_waveforms(node: DictConfig | None) -> Waveforms | None:
    """The changes of waveforms that a config describes; None for none."""
    if not node:
        return None
    if not isinstance(node, DictConfig):
        raise InputError(f"augment.waveform={node}: expected transforms by name, as in augment=waveform, or null.")
    transforms: dict[str, nn.Module] = {}
    settings: dict[str, Any] = {}
    for name in map(str, node):
        below = node[name]
        if below is None:
            continue
        expected = f"augment.waveform.{name}: expected a transform, a _target_ and its keys, or null."
        if not isinstance(below, DictConfig):
            raise InputError(expected)
        try:
            transforms[name] = build(below)
        except InstantiationException as error:  # such as what is not installed
            raise InputError(f"augment.waveform.{name}: {_told(error)}") from error
        if not isinstance(transforms[name], nn.Module):
            raise InputError(expected)
        settings[name] = OmegaConf.to_container(below)
    return Waveforms(transforms, settings)


def _told(error: InstantiationException) -> str:
    """Why a transform cannot be built, in one line."""
    cause: BaseException = error.__cause__ or error
    missing = cause.__cause__
    if isinstance(missing, ModuleNotFoundError) and missing.name == "torch_audiomentations":
        return f'torch-audiomentations is not installed ({missing}): pip install "fourm_ser[augment]"'
    return " ".join(str(cause).split())
