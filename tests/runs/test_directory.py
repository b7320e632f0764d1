"""What lies in a run directory is known in one file."""

import ast
from pathlib import Path

import pytest

from fourm_ser.config import PACKAGE
from fourm_ser.errors import BusyError, InputError
from fourm_ser.runs.collect import read_run
from fourm_ser.runs.directory import RunDirectory, is_model, model_folder
from tests.report.runs import write_run

HOME = "runs/directory.py"
# A model directory, whose names its own file knows, has a config.yaml, too; an error of the predictor speaks of it.
# Help with mistaken words, which is below all rooms, tells by them what a folder is.
OTHERS = {
    "config.yaml": {"models/directory.py", "prediction/predictor.py", "mistakes.py"},
    "labels.json": {"models/directory.py", "mistakes.py"},
}


def names() -> set[str]:
    run = RunDirectory(Path("run"))
    stage = run.stage(0, "transfer")
    paths = [value for one in (run, stage) for value in vars(one).values() if isinstance(value, Path)]
    return {path.name for path in paths if path.suffix} | {"labels.json", "multirun.yaml"}


def test_no_other_file_spells_a_name_of_a_run_directory() -> None:
    assert {"config.yaml", "metrics.json", "best.ckpt", "finished.json", "hydra.yaml"} <= names()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        spelt = {name for name in names() & found if file not in OTHERS.get(str(name), ())}
        assert file == HOME or not spelt, f"{file} spells {spelt}"


def test_the_tables_of_the_stages_come_in_the_order_of_the_stages(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number, name in ((10, "a"), (2, "b-c"), (9, "d")):
        run.stage(number, name).path.mkdir(parents=True)
        if name != "d":
            run.stage(number, name).epochs.touch()
    assert run.tables == {"b-c": run.stage(2, "b-c").epochs, "a": run.stage(10, "a").epochs}


def test_the_record_of_an_earlier_version_is_read_as_one_of_this(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", changes={"head": {"_target_": "fourm_ser.network.Head"}})
    now = {"_target_": "fourm_ser.models.network.Head"}
    assert read_run(run).config["head"] == RunDirectory(run).read_record().head == now


def test_a_run_that_somebody_does_is_refused_to_others(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.locked(), pytest.raises(BusyError, match="another process"), RunDirectory(tmp_path).locked():
        pass
    with run.locked():  # it is free again
        pass


def test_a_failure_is_read_as_it_was_written_and_gone_with_the_rest(tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "run"))
    run.write_failure(ValueError("odd"), ["loss=ce"])
    assert run.read_failure() == {"error": "ValueError: odd", "overrides": ["loss=ce"]}
    run.write_failure(InputError("loss: none"))
    assert run.read_failure() == {"error": "loss: none", "overrides": []}
    run.forget()
    assert sorted(path.name for path in run.path.iterdir()) == [".hydra", "predictions.csv"]


def test_a_model_is_found_at_or_in_a_folder(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    for name in ("model.safetensors", "config.yaml", "labels.json"):
        (model / name).touch()
    assert model_folder(tmp_path / "run") == model_folder(model) == model
    assert is_model(model)
    assert not is_model(tmp_path / "run")
    with pytest.raises(InputError, match=r"no config\.yaml there\. Expected the directory of a finished run"):
        RunDirectory(tmp_path / "run").read_finished_record()
    with pytest.raises(InputError, match="It is a model directory: give the run's own"):
        RunDirectory(model).read_finished_record()
