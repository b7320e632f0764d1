"""What is a run, and in which state it is."""

import json
from pathlib import Path

import pytest
import yaml

from fourm_ser.errors import InputError
from fourm_ser.files import write_text
from fourm_ser.runs.collect import collect, find_runs, planned, read_run
from tests.report.runs import write_run, write_sweep


def test_runs_are_found_and_nothing_inside_them(tmp_path: Path) -> None:
    written = write_sweep(tmp_path / "sweep", ["tiny", "bert_vggish"], ["ce"])
    (written[0] / "model").mkdir()
    (written[0] / "model" / "config.yaml").write_text("a: 1\n")
    (written[0] / "model" / "train.log").write_text("")
    stranger = tmp_path / "project"
    stranger.mkdir()
    (stranger / "config.yaml").write_text("a: 1\n")
    assert sorted(find_runs(tmp_path)) == sorted(written)
    assert list(find_runs(written[0])) == [written[0]]


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", ["tiny"], ["ce"])
    assert len(collect([tmp_path, tmp_path / "sweep", tmp_path]).runs) == 1


def test_jobs_come_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    write_run(tmp_path / "a", encoder="tiny", job=11)
    write_run(tmp_path / "b", encoder="bert_vggish", job=2)
    assert [run.path.name for run in collect([tmp_path]).runs] == ["b", "a"]


def test_states(tmp_path: Path) -> None:
    write_run(tmp_path / "finished")
    write_run(tmp_path / "running", seed=1, finished=False)
    failed = write_run(tmp_path / "failed", seed=2, finished=False)
    (failed / "failure.json").write_text(json.dumps({"error": "loss.alpha=1.5: too large", "overrides": ["loss=x"]}))
    begun = tmp_path / "begun"
    (begun / ".hydra").mkdir(parents=True)
    states = {run.path.name: run.state for run in collect([tmp_path]).runs}
    assert states == {"finished": "finished", "running": "unfinished", "failed": "failed", "begun": "unfinished"}
    assert read_run(failed).why == "loss.alpha=1.5: too large"


def test_a_failure_without_config_tells_its_overrides(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    record = {"error": "no such loss", "overrides": ["loss=x", "hydra.sweep.dir=y"]}
    (tmp_path / "job" / "failure.json").write_text(json.dumps(record))
    (run,) = collect([tmp_path]).runs
    assert (run.state, run.why, run.overrides) == ("failed", "no such loss", ["loss=x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ('{"test/ua": 0.5, "test', "Unterminated"),
        ("[1, 2]", "expected keys and values"),
        ('{"test/ua": 0.5, "test/wa": 0.5}', "does not say that the run has finished"),
        ('{"finished": true, "test/wa": 0.5}', "test/ua is None"),
        ('{"finished": true, "test/wa": 0.5, "test/ua": "high"}', "test/ua is 'high'"),
        ('{"finished": true, "test/wa": 0.5, "test/ua": NaN}', "test/ua is None"),
        ('{"finished": true, "test/wa": 0.5, "test/ua": 80.1}', "test/ua is 80.1"),
        ('{"finished": true, "test/wa": 0.5, "test/ua": 0.5, "test/ece": "x"}', "test/ece is 'x'"),
    ],
)
def test_a_damaged_metrics_json_is_said_and_the_others_stay(tmp_path: Path, text: str, said: str) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", seed=1)
    (bad / "metrics.json").write_text(text)
    runs = {run.path.name: run for run in collect([tmp_path]).runs}
    assert runs["good"].state == "finished"
    assert runs["bad"].state == "damaged"
    assert said in runs["bad"].why


def test_a_damaged_config_is_said(tmp_path: Path) -> None:
    bad = write_run(tmp_path / "bad")
    (bad / "config.yaml").write_text("a: [1,")
    assert "config.yaml cannot be read" in read_run(bad).why
    (bad / "config.yaml").write_bytes(b"\xff\xfe\x00")
    assert read_run(bad).state == "damaged"
    (bad / "config.yaml").write_text("model: 1\n")
    assert "is this a run of fourm_ser?" in read_run(bad).why
    (bad / "config.yaml").unlink()
    assert "config.yaml is missing" in read_run(bad).why


def test_no_run_is_an_error_and_an_empty_folder_beside_runs_a_problem(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "run")
    (tmp_path / "empty").mkdir()
    (problem,) = collect([tmp_path / "sweep", tmp_path / "empty"]).problems
    assert f"{tmp_path / 'empty'}: holds no run" in problem
    with pytest.raises(InputError, match="no run found"):
        collect([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such folder"):
        collect([tmp_path / "sweep", tmp_path / "nowhere"])


def test_jobs_that_have_not_begun_are_known_from_multirun_yaml(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    write_run(sweep / "one", loss="ce", words=("data.strict=True",))  # as Hydra hands it on
    node = {
        "overrides": {"task": ["encoder=tiny", "loss=ce,focal", "seed=0", "data.fold=range(2)", "data.strict=true"]},
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": {"seed": "7,8"}},
    }
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": node}))
    waiting = collect([tmp_path]).waiting[sweep]
    assert sorted(" ".join(job) for job in waiting) == [
        "encoder=tiny loss=ce seed=0 data.fold=1 data.strict=True",
        "encoder=tiny loss=focal seed=0 data.fold=0 data.strict=True",
        "encoder=tiny loss=focal seed=0 data.fold=1 data.strict=True",
    ]
    grids = [{}, {"head.dropout": "0.1,0.2", "seed": "5"}, {"loss": "ce"}]  # the last says nothing that is not said
    node["sweeper"] = {"_target_": "hydra_plugins.fourm_ser.GridsSweeper", "params": None, "grids": grids}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": node}))
    jobs = planned(sweep / "multirun.yaml")
    assert len(jobs) == 4 + 2 * 4
    assert all("seed=0" in job for job in jobs)
    node["sweeper"] = {"_target_": "hydra_plugins.hydra_optuna_sweeper.OptunaSweeper", "params": None}
    (sweep / "multirun.yaml").write_text(yaml.safe_dump({"hydra": node}))
    assert planned(sweep / "multirun.yaml") == []


@pytest.mark.parametrize(
    "text",
    ["data: {name: so, null: 1}", "data: {name: so, true: 1, other: 2}", "stage: 1\ndata: {name: so, 1: a, b: c}"],
)
def test_a_config_that_cannot_be_compared_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert (run.state, run.why[:26]) == ("damaged", "config.yaml cannot be read")


def test_a_config_that_was_changed_is_said(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "data: {name: so}\nseed: 1\n", seal=True)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("data: {name: so}\nseed: 3\n")
    assert "not what was written" in read_run(tmp_path).why
