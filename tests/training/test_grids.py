"""Unions of grids, and the studies of published papers."""

from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from fourm_ser.training.grids import GridsSweeper, each_grid
from tests.conftest import CONF, Compose

GRIDS = [{"loss": "ce"}, {"loss": "ce,focal", "head.dropout": "0.1,0.2"}, {"loss": "ce"}]
WEIGHTED = ["4m_ser_ce_center", "4m_ser_ce_contrastive_center", "4m_ser_arcface", "4m_ser_cosface"]


class _Context:
    """What a sweeper asks of Hydra to read choices."""

    config_loader: Any = None


def jobs(grids: list[dict[str, str]], *words: str, params: dict[str, str] | None = None) -> list[set[str]]:
    sweeper = GridsSweeper(grids, params=params)
    sweeper.hydra_context = _Context()  # type: ignore[assignment]
    own = [f"{key}={value}" for key, value in (params or {}).items()]
    (batch,) = sweeper.split_arguments(OverridesParser.create().parse_overrides([*own, *words]), None)
    assert len({frozenset(job) for job in batch}) == len(batch), "a job stands there twice"
    return [set(job) for job in batch]


def study(name: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    sweeper = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]
    return sweeper["grids"], {key: str(value) for key, value in sweeper["params"].items()}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 5),  # ce once, though two grids have it, and four of the product
        (["seed=0,1"], 10),
        (["head.dropout=0.5"], 2),  # what is said beside the grids holds in all: jobs that become one are one
        (["loss=center", "head.dropout=0.5"], 1),
    ],
)
def test_a_union_has_each_job_of_each_grid_once(words: list[str], count: int) -> None:
    found = jobs(GRIDS, *words, params={"encoder": "tiny"})
    assert len(found) == count
    assert all("encoder=tiny" in job for job in found)
    for word in words:
        assert all(any(f"{word.partition('=')[0]}=" in choice for choice in job) for job in found)


def test_batches_are_of_all_grids_together() -> None:
    sweeper = GridsSweeper(GRIDS)
    sweeper.hydra_context = _Context()  # type: ignore[assignment]
    assert [len(batch) for batch in sweeper.split_arguments([], 2)] == [2, 2, 1]


def test_without_grids_it_is_the_product() -> None:
    assert jobs([], "loss=ce,focal", "seed=0,1") == [
        {"loss=ce", "seed=0"},
        {"loss=ce", "seed=1"},
        {"loss=focal", "seed=0"},
        {"loss=focal", "seed=1"},
    ]


def test_4m_ser_s_study_has_its_encoders_and_its_losses() -> None:
    grids, params = study("paper_4m_ser")
    found = jobs(grids, params=params)
    with_ce = [job for job in found if not any(word.startswith("loss") for word in job)]
    texts = {("encoder/text=roberta" in job) for job in with_ce}
    audios = {
        next((word.partition("=")[2] for word in job if word.startswith("encoder/audio=")), "")
        or next(word for word in job if word.startswith("experiment="))
        for job in with_ce
    }
    assert (len(with_ce), texts) == (8, {True, False})
    assert {"experiment=4m_ser", "experiment=4m_ser_ssl", "wav2vec_4m_ser", "wavlm_4m_ser"} <= audios
    lambdas = {f"loss.alpha=0.{tenth}" for tenth in range(1, 10)}
    for loss in WEIGHTED:
        of_it = [job for job in found if f"loss={loss}" in job]
        assert {word for job in of_it for word in job if word.startswith("loss.alpha")} == lambdas
        assert len(of_it) == 10  # and their plain sum
        one_stage = loss in ("4m_ser_arcface", "4m_ser_cosface")
        assert all(({"stage=4m_ser_one", "optimizer=adam"} <= job) == one_stage for job in of_it)
    assert len(found) == 8 + 1 + 4 * 10


@pytest.mark.slow(but=["0", "4", "7", "8"])
@pytest.mark.parametrize("number", range(9))
def test_each_grid_of_4m_ser_s_study_composes(number: int, composed: Compose) -> None:
    grids, params = study("paper_4m_ser")
    words = [f"{key}={str(value).partition(',')[0]}" for key, value in {**params, **grids[number]}.items()]
    config = composed("data=iemocap", "data.root=x", *words)
    for word in words:
        key, _, value = word.partition("=")
        if "." in key:
            node: Any = config
            for part in key.split("."):
                node = node[part]
            assert str(node) == value


def test_choices_of_a_grid_are_the_last_said() -> None:
    overrides = OverridesParser.create().parse_overrides(["loss=focal"])
    loader: Any = None
    (found,) = each_grid([{"loss": "ce", "seed": "1"}], overrides, loader)
    assert {choice.get_key_element(): choice.value() for choice in found} == {"loss": "focal", "seed": 1}
