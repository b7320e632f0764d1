"""What shortens the tests does not change what they see."""

import os
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from tests.conftest import CONF


def composed_of(folder: Path, *words: str) -> DictConfig:
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("train", list(words))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs in another folder, which is read anew each time."""
    return shutil.copytree(CONF, tmp_path_factory.mktemp("configs") / "conf")


@pytest.mark.slow(but=["words0"])
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["loss=ce_center", "loss.terms.center.on=[audio]"],
        ["encoder=bert_hubert", "encoder/text=roberta", "stage=two_stage", "~scheduler"],
        ["data@data.train=iemocap", "data@data.test=esd", "data=cross_corpus", "+lose=2"],
    ],
)
def test_what_was_composed_before_is_composed_as_at_first(words: list[str], copy: Path) -> None:
    first = composed_of(CONF, *words, "seed=3")
    assert first == composed_of(copy, *words, "seed=3")
    first.seed, first.trainer.devices = 5, "many"
    assert composed_of(CONF, *words) == composed_of(copy, *words)


def test_what_cannot_be_composed_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(HydraException, match="fusion/zzz"):
            composed_of(CONF, "fusion=zzz")
        with pytest.raises(HydraException, match="zzz"):
            composed_of(CONF, "fusion.zzz=1")


def test_a_file_of_another_folder_is_read_as_it_stands(copy: Path) -> None:
    (copy / "loss" / "mine.yaml").write_text("name: first\n")
    assert composed_of(copy, "loss=mine").loss.name == "first"
    (copy / "loss" / "mine.yaml").write_text("name: second\n")
    assert composed_of(copy, "loss=mine").loss.name == "second"
    os.remove(copy / "loss" / "mine.yaml")
