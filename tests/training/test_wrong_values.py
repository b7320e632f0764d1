"""Values that the class of their key cannot reckon with: refused by the key, before anything is prepared or encoded."""

from pathlib import Path

import pytest

from fourm_ser.errors import InputError
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training.experiment import Experiment
from tests.conftest import Compose

SGD = "optimizer=sgd"
OWN = ["optimizer@stage.transfer.optimizer=sgd", "scheduler@stage.transfer.scheduler=cosine"]
BY_TERM = ["loss=4m_ser_ce_center"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([SGD, "optimizer.momentum=abc"], "optimizer: SGD does not work with lr="),
        ([SGD, "optimizer.momentum=-1"], r"optimizer: SGD .*: Invalid momentum value: -1"),
        ([SGD, "optimizer.momentum=null"], "optimizer: SGD .*momentum=None"),
        ([SGD, "+optimizer.dampening=abc"], "optimizer: SGD .*dampening=abc"),
        (["+optimizer.betas=[0.9]"], "optimizer: AdamW "),
        (["+optimizer.eps=abc"], "optimizer: AdamW .*eps=abc"),
        ([*OWN, "stage.transfer.optimizer.lr=abc"], r"stage\.transfer\.optimizer: SGD .*lr=abc"),
        ([*OWN, "stage.transfer.scheduler.warmup=2"], r"stage\.transfer\.scheduler\.warmup=2: expected a share"),
        ([*BY_TERM, "loss.optimizer.lr=-1"], r"loss\.optimizer: Adam .*Invalid learning rate: -1"),
        ([*BY_TERM, "loss.scheduler.gamma=abc"], r"loss\.scheduler\.gamma=abc: expected a number above 0"),
        (["scheduler.warmup=abc"], r"scheduler\.warmup=abc: expected a share from 0 to 1"),
        (["scheduler.floor=-1"], r"scheduler\.floor=-1: expected a share from 0 to 1"),
        (["scheduler=step", "scheduler.epochs=0"], r"scheduler\.epochs=0: expected a whole number of epochs"),
        (["scheduler=step", "scheduler.gamma=0"], r"scheduler\.gamma=0: expected a number above 0"),
        (["scheduler=milestones", "scheduler.epochs=7"], r"scheduler\.epochs=7: expected a list of epochs"),
        (["loss=ce_center", "loss.terms=abc"], "loss: SumLoss cannot be built from these keys"),
        (["loss=ce_center", "loss.weights=3"], "loss: SumLoss cannot be built from these keys"),
        (["loss=arcface", "loss.on=3"], "loss: MarginLoss cannot be built from these keys"),
        (["fusion.statistics=3"], "fusion: StandardisedFusion cannot be built from these keys"),
        (["head.activation=[1]"], "Head cannot be built from these keys"),
        (["augment.spec=abc"], "config: abc: expected an option's keys"),
        (["augment.spec.modalities=3"], "FeatureMasks cannot be built from these keys"),
        (["augment.waveform=abc"], r"augment\.waveform=abc: expected transforms by name"),
        (["augment.waveform=[1]"], r"augment\.waveform=\[1\]: expected transforms by name"),
        (["encoder.text.architecture.hidden_size=abc"], r"encoder\.text\.architecture: .*'hidden_size' expected int"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key_before_anything_is_read(
    words: list[str], said: str, composed: Compose, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Experiment(composed(*words), RunDirectory(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[SGD], OWN, BY_TERM, ["scheduler=plateau"], ["scheduler=server"]])
def test_the_options_are_right(words: list[str], composed: Compose, tmp_path: Path) -> None:
    Experiment(composed(*words), RunDirectory(tmp_path / "run"))
