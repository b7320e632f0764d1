"""What a stranger's config may name: parts of a run, and nothing that runs anything else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion
from fourm_ser.trust import read_trust, refuse_strangers
from tests.conftest import CONF, Compose
from tests.hostile.conftest import Refusal, Stranger


class Imported(Fusion):
    """A fusion of the user's own, in a module that is imported."""


Node = dict[str, Any]
PAYLOADS: dict[str, Callable[[Stranger], Node]] = {
    "writes a file": lambda it: {
        "_target_": "pathlib.Path.write_text",
        "_args_": [{"_target_": "pathlib.Path", "_args_": [str(it.ran)]}, "x"],
    },
    "pandas unpickles": lambda it: {"_target_": "pandas.read_pickle", "filepath_or_buffer": str(it.home / "data.pkl")},
    "torch unpickles": lambda it: {"_target_": "torch.load", "f": str(it.home / "data.pkl"), "weights_only": False},
    "numpy unpickles": lambda it: {"_target_": "numpy.load", "file": str(it.home / "data.npy"), "allow_pickle": True},
    "pickle itself": lambda it: {"_target_": "pickle.loads", "_args_": [(it.home / "data.pkl").read_bytes().hex()]},
    "exec": lambda it: {"_target_": "builtins.exec", "_args_": [f"import os; os.mkdir({str(it.ran)!r})"]},
    "a shell": lambda it: {"_target_": "os.system", "command": f"mkdir {it.ran}"},
    "a process": lambda it: {"_target_": "subprocess.run", "args": ["mkdir", str(it.ran)]},
    "a folder": lambda it: {"_target_": "os.mkdir", "path": str(it.ran)},
    "a variable": lambda it: {"_target_": "os.getenv", "key": "SECRET"},
    "an import": lambda it: {"_target_": "importlib.import_module", "name": "stranger_code"},
    "its own module": lambda it: {"_target_": "stranger_code.Head"},
    "a function of this package": lambda it: {
        "_target_": "fourm_ser.files.write_text",
        "path": str(it.ran),
        "text": "x",
    },
    "what builds anything": lambda it: {
        "_target_": "fourm_ser.config.build",
        "node": {"_target_": "os.mkdir", "path": str(it.ran)},
    },
    "a module within this package": lambda it: {"_target_": "fourm_ser.files.os.mkdir", "path": str(it.ran)},
    "what a function can see": lambda it: {
        "_target_": "fourm_ser.models.network.Head.__init__.__globals__.get",
        "_args_": ["build"],
    },
    "a method of a part": lambda it: {"_target_": "fourm_ser.models.network.Head.load_state_dict", "_args_": [{}, {}]},
    "Hydra's own": lambda it: {"_target_": "hydra.utils.get_method", "path": "os.mkdir"},
    "the hub of torch": lambda it: {"_target_": "torch.hub.load", "repo_or_dir": str(it.home), "source": "local"},
    "another run": lambda it: {"_target_": "fourm_ser.training.experiment.resume", "run_dir": str(it.run)},
    "later": lambda it: {"_target_": "os.mkdir", "_partial_": True, "path": str(it.ran)},
    "no name": lambda it: {"_target_": ["os.mkdir"]},
    "a number": lambda it: {"_target_": 3},
    "a path": lambda it: {"_target_": "../stranger_code.Head"},
}
PLACES = {
    ("predict", "head"): "model",
    ("predict", "fusion.more"): "model",
    ("evaluate", "data.more"): "run",
    ("analyze", "loss.terms"): "run",
    ("resume", "scheduler"): "run",
    ("resume", "stage.transfer.optimizer"): "run",
}


# Each at two of the places, and all at the same number of them.
CASES = [
    (payload, *[*PLACES][(number + shift) % len(PLACES)]) for shift in (0, 3) for number, payload in enumerate(PAYLOADS)
]


@pytest.mark.slow(but=["-predict-"])
@pytest.mark.parametrize(("payload", "command", "place"), CASES)
def test_nothing_but_parts_of_a_run_is_built_from_a_folder(
    stranger: Stranger, refusal: Refusal, payload: str, command: str, place: str
) -> None:
    file = {"model": stranger.model, "run": stranger.run}[PLACES[command, place]] / "config.yaml"
    node = PAYLOADS[payload](stranger)
    stranger.change(file, place, [[node]] if place.endswith("more") else node)
    said = refusal(command)
    assert said.startswith(f"{file}: {place}")
    assert "_target_=" in said


@pytest.mark.parametrize("command", ["evaluate", "analyze"])
def test_the_model_of_a_run_is_checked_beside_its_record(stranger: Stranger, refusal: Refusal, command: str) -> None:
    stranger.change(stranger.model / "config.yaml", "head", PAYLOADS["a shell"](stranger))
    assert refusal(command).startswith(f"{stranger.model / 'config.yaml'}: head._target_=os.system")


def test_a_run_of_classes_of_ones_own_says_which_package_to_trust(
    stranger: Stranger, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = stranger.home / "its_lab"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "heads.py").write_text(
        "import os\nfrom pathlib import Path\nfrom fourm_ser.models.network import Head\n"
        "class Own(Head):\n    pass\nclass Other:\n    pass\n"
    )
    config = stranger.model / "config.yaml"
    stranger.change(config, "head._target_", "its_lab.heads.Own")
    assert "add trust=its_lab" in refusal("predict")
    assert "none.wav" in refusal("predict", "trust=its_lab")  # it went on to the recording
    for name in ("Other", "os.mkdir", "Path", "missing"):
        stranger.change(config, "head._target_", f"its_lab.heads.{name}")
        said = refusal("predict", "trust=[its_lab]")
        assert ("no such class" if name == "missing" else "is no part of a run") in said


def test_what_the_user_has_imported_may_be_named() -> None:
    node = {"fusion": {"_target_": f"{__name__}.Imported"}}
    refuse_strangers(node, Path("config.yaml"))
    with pytest.raises(InputError, match="is no part of a run"):
        refuse_strangers({"fusion": {"_target_": f"{__name__}.Path"}}, Path("config.yaml"))


def test_a_package_of_a_like_name_is_not_trusted() -> None:
    with pytest.raises(InputError, match="trust=my_lab_of_others"):
        refuse_strangers({"head": {"_target_": "my_lab_of_others.Head"}}, Path("config.yaml"), ("my_lab",))


@pytest.mark.parametrize("given", ["", "../lab", "a b", ["my_lab", 3], "my_lab;x"])
def test_trust_takes_names_of_packages(given: Any) -> None:
    with pytest.raises(InputError, match=r"^trust="):
        read_trust(given if given else [given])


def test_whatever_the_package_itself_records_may_be_built(composed: Compose) -> None:
    groups = ("data", "encoder/text", "encoder/audio", "fusion", "head", "loss", "optimizer", "scheduler", "augment")
    for group in (*groups, "logger", "stage", "baseline"):
        for file in sorted((CONF / group).glob("*.yaml")):
            refuse_strangers({group.partition("/")[0]: yaml.safe_load(file.read_text())}, file)
    refuse_strangers(composed("augment=waveform", "scheduler=plateau", "loss=ce_center"), Path("config.yaml"))
