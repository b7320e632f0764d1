"""What does not fit together in a config, refused before any data is prepared and any encoder built."""

import copy
from collections.abc import Sequence

from omegaconf import DictConfig

from fourm_ser.config import build
from fourm_ser.data.corpus import Corpus
from fourm_ser.devices import MIXED
from fourm_ser.encoders.lora import Lora, require_peft
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.models.network import known_widths
from fourm_ser.training.schedules import Plateau
from fourm_ser.training.stages import Stage

WITHOUT_STORE = ("32-true", "32", *MIXED, "bf16", "16")  # precisions that leave what encoders read as it is


def refuse_misfits(config: DictConfig, stages: Sequence[Stage], corpus: Corpus, loss: Loss) -> None:
    """Refuse what does not fit together.

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
        for modality in config.fusion.modalities:
            if stage.unfreeze.get(modality) == "lora":
                require_peft(f"stage.{stage.name}.unfreeze.{modality}")
                Lora(**build(config.lora)).check()
        if config.get("refit", False) and getattr(stage.scheduler, "func", None) is Plateau:
            raise InputError(
                f"refit=true: the scheduler of stage.{stage.name} is plateau, which follows the validation, and a "
                "refit has none. Choose another: scheduler=cosine."
            )
    widths = dict.fromkeys(("embedding", *config.fusion.modalities), 1)
    emotions = corpus.wanted  # None: those that the corpus turns out to have
    dims = known_widths(config)
    if None not in dims.values():
        fusion = build(config.fusion, dims=dims)
        build(config.head, dim=fusion.dim, classes=len(emotions or "ab"))
        widths = {"embedding": fusion.dim, **fusion.widths}
    if emotions is not None:
        copy.deepcopy(loss).setup(len(emotions), widths, [1] * len(emotions)).check_classifier()
