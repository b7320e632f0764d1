"""What does not fit together in a run, refused before anything trains."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from fourm_ser.config import build
from fourm_ser.data.corpus import Corpus
from fourm_ser.devices import MIXED
from fourm_ser.encoders.lora import Lora, adapters, require_peft
from fourm_ser.encoders.padding import check_padding
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.models.network import EmotionNetwork, known_widths, pooling_of
from fourm_ser.models.sources import check_transcripts, compare_languages
from fourm_ser.terminal import many
from fourm_ser.training.optimizers import rehearse
from fourm_ser.training.schedules import Plateau
from fourm_ser.training.stages import Stage

log = logging.getLogger(__name__)

WITHOUT_STORE = ("32-true", "32", *MIXED, "bf16", "16")  # precisions that leave what encoders read as it is


def refuse_misfits(config: DictConfig, stages: Sequence[Stage], corpus: Corpus, loss: Loss) -> None:
    """Refuse what does not fit together in a config, before any data is prepared and any encoder built.

    Args:
        config: The run's config.
        stages: Its stages.
        corpus: Its corpus, of which nothing was read.
        loss: Its loss, not set up.

    Raises:
        InputError: the keys that do not.
    """
    precision = str(config.trainer.precision)
    if not config.encode.get("store", True) and precision not in WITHOUT_STORE:
        raise InputError(
            f"trainer.precision={precision}: would round what frozen encoders read, where encode.store=false lets "
            f"them read it in every epoch. Expected one of {', '.join(WITHOUT_STORE)}, or encode.store=true."
        )
    for stage in stages:
        _rehearse(config, stage, loss)
        for modality in config.fusion.modalities:
            if stage.unfreeze.get(modality) == "lora":
                require_peft(f"stage.{stage.name}.unfreeze.{modality}")
                Lora(**build(config.lora)).check()
        if config.refit and getattr(stage.scheduler, "func", None) is Plateau:
            raise InputError(
                f"refit=true: the scheduler of stage.{stage.name} is plateau, which follows the validation, and a "
                "refit has none. Choose another: scheduler=cosine."
            )
    widths = dict.fromkeys(("embedding", *config.fusion.modalities), 1)
    emotions = corpus.wanted  # None: those that the corpus turns out to have
    dims = known_widths(config)
    if None not in dims.values():
        given: dict[str, Any] = {"dims": dims}
        if getattr(get_object(config.fusion._target_), "reads_activity", False):
            # Whether an encoder tells speech from pauses is known once it is built; nothing is refused for it here.
            given["activity"] = [modality for modality in dims if pooling_of(config, modality) == "none"]
            given["dims"] = {
                name: width + (name in given["activity"]) for name, width in dims.items() if width is not None
            }
        fusion = build(config.fusion, **given)
        build(config.head, dim=fusion.dim, classes=len(emotions or "ab"))
        widths = {"embedding": fusion.dim, **fusion.widths}
    if emotions is not None:
        copy.deepcopy(loss).setup(len(emotions), widths, [1] * len(emotions)).check_classifier()


def _rehearse(config: DictConfig, stage: Stage, loss: Loss) -> None:
    """Refuse a stage's optimizers and schedules that cannot take a step, by where the config says them."""
    own = config.stage[stage.name]
    optimizer, scheduler = (
        (f"stage.{stage.name}.{part}" if own[part] else part, getattr(stage, part))
        for part in ("optimizer", "scheduler")
    )
    rehearse(optimizer, scheduler)
    if loss.optimizer:
        of_loss = ("loss.scheduler", loss.scheduler) if loss.scheduler else scheduler
        rehearse(("loss.optimizer", loss.optimizer), of_loss)


def look_at(network: EmotionNetwork, stages: Sequence[Stage], corpus: Corpus, cache: Path) -> None:
    """Tell of a network's encoders, and refuse what they cannot do in some stage, before the first one trains.

    Args:
        network: The network, as it begins.
        stages: The run's stages.
        corpus: The corpus, set up.
        cache: Where it is remembered that an encoder does not feel padding.

    Raises:
        InputError: a part that cannot train, or padding that an encoder feels.
    """
    for encoder in network.by_modality.values():
        narrow = sum(parameter.numel() for parameter in adapters(encoder))
        size = sum(parameter.numel() for parameter in encoder.parameters()) - narrow
        found = encoder.modality, encoder.name, many(size), encoder.weights
        log.info("%s encoder: %s, %s parameters, weights: %s", *found)
        if narrow:
            share = f"{narrow:,} of {many(size)} weights of {encoder.name} train ({narrow / size:.1%})"
            log.info("lora: %s", share)
        for stage in stages:
            encoder.unfreeze(stage.unfreeze[encoder.modality])
            if stage.layer_decay is not None and not encoder.frozen:
                encoder.depths()
        if stages[0].unfreeze[encoder.modality] != "none":  # else it is checked where its store is opened
            check_padding(encoder, encoder.fingerprint(), cache)
    compare_languages(network, corpus)
    check_transcripts(network, corpus.frame["text"])
