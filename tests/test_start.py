"""What commands answer before they load anything heavy: by what a process of its own has imported in the end."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.conftest import CONF

HEAVY = ("torch", "numpy", "pandas", "transformers", "pytorch_lightning", "sklearn", "librosa", "matplotlib", "wandb")
MODULES = ("train", "evaluate", "predict", "push", "export", "serve", "prepare", "analyze", "report.__main__")
WRONG = [  # module, words, what it says of them
    ("train", ["resume=nowhere"], "resume=nowhere: no config.yaml there."),
    (
        "train",
        ["resume=nowhere", "seed=3"],
        "resume=DIR goes on with the run as its config.yaml records it: leave out seed",
    ),
    ("train", ["seed=abc"], "seed=abc: expected a whole number"),
    ("train", ["optimizer.lr=abc"], "optimizer.lr=abc: expected a number above 0."),
    ("train", ["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1: expected a number of 0 or more."),
    ("train", ["+lose=ce"], "lose: no such key. Did you mean loss?"),
    ("train", ["trainer.precison=32"], "trainer.precison: no such key. Did you mean trainer.precision?"),
    ("train", ["fusion=self_atention"], "fusion=self_atention: no such option. Did you mean self_attention?"),
    ("train", ["data=manifest", "data.manifest=nowhere.csv"], "{folder}/nowhere.csv: no such manifest."),
    ("train", ["data=manifest"], "config: nothing is given for data.manifest."),
    ("evaluate", ["seed=0"], "evaluate: give either run=DIR, a finished run, or model=DIR"),
    ("evaluate", ["run=nowhere"], "nowhere: no config.yaml there. Expected the directory of a finished run."),
    ("evaluate", ["run=nowhere", "side=left"], "side=left: expected train, val, test, all."),
    ("evaluate", ["model=nowhere"], "model=DIR: a model directory has no corpus."),
    ("evaluate", ["model=nowhere", "data=demo"], "nowhere: no model.safetensors there."),
    ("predict", ["format=json"], "model: nothing is given. Add model=DIR, the folder model/ of a finished run."),
    ("predict", ["model=nowhere"], "audio: nothing is given to predict on."),
    ("predict", ["model=nowhere", "text=calm"], "nowhere: no such folder."),
    ("predict", ["modell=nowhere", "text=calm"], "modell: no such key. Did you mean model?"),
    ("push", ["run=nowhere", "repo=a/b"], "nowhere: no config.yaml there. Expected the directory of a finished run."),
    ("export", ["model=nowhere", "output=x.onnx"], "nowhere: no such folder."),
    ("serve", ["seed=0"], "seed: no such key."),
    ("serve", ["model=nowhere"], "nowhere: no such folder."),
    ("prepare", ["data=manifest", "data.manifest=nowhere.csv"], "{folder}/nowhere.csv: no such manifest."),
    ("analyze", ["seed=0"], "analyze: nothing is given."),
    ("analyze", ["run=nowhere"], "nowhere: no such folder."),
    ("analyze", ["run=nowhere", "parts=[colours]"], "parts=[colours]: expected any of alignment"),
]
RIGHT = [  # module, words, what it says it loads
    ("train", ["seed=1"], "PyTorch"),
    ("train", ["--multirun", "loss=ce,focal", "hydra.sweep.dir=sweep"], "PyTorch"),
    ("prepare", ["data=demo"], "pandas"),
]
# Each command line in a process of its own, forked from one that has loaded no more than the commands' modules; those
# that nothing is wrong with end where they would load the first that is heavy.
CODE = f"""
import importlib, json, os, sys
class End:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY}:
            leave("began")
def leave(code):
    sys.stdout.flush()
    with open(f"{{number}}.json", "w") as file:
        json.dump([code, sorted(set({HEAVY}) & set(sys.modules))], file)
    os._exit(0)
modules = {{name: importlib.import_module(f"fourm_ser.{{name}}") for name in {MODULES}}}
for number, (name, words) in enumerate(json.load(sys.stdin)):
    if os.fork() == 0:
        for descriptor, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{{number}}.{{stream}}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv[1:] = words
        code = 0
        if words in {[words for _, words, _ in RIGHT]}:
            sys.meta_path.insert(0, End())
        try:
            modules[name].main()
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        leave(code)
    os.wait()
"""


class Ended(NamedTuple):
    """How a command ended, and what of `HEAVY` it had loaded."""

    code: int | str
    loaded: list[str]
    out: str
    err: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Ended]:
    """Every command line of these tests, by its words."""
    folder = tmp_path_factory.mktemp("commands").resolve()
    lines: list[tuple[str, list[str]]] = [(name, ["--help"]) for name in MODULES]
    lines += [(name, words) for name, words, _ in [*WRONG, *RIGHT]]
    environment = {**os.environ, "PYTHONPATH": str(CONF.parent), "COLUMNS": "200"}
    given = json.dumps(lines)
    subprocess.run([sys.executable, "-c", CODE], cwd=folder, env=environment, input=given, text=True, check=True)
    found = {}
    for number, (name, words) in enumerate(lines):
        code, loaded = json.loads((folder / f"{number}.json").read_text())
        out, err = ((folder / f"{number}.{stream}").read_text() for stream in ("out", "err"))
        found[name, *words] = Ended(code, loaded, out, err.replace(str(folder), "{folder}"))
    written = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    assert {path.parent.name for path in written} <= {".hydra", "sweep"}  # Hydra's own record of the words
    return found


@pytest.mark.parametrize("module", MODULES)
def test_help_loads_nothing_heavy(module: str, ended: dict[tuple[str, ...], Ended]) -> None:
    done = ended[module, "--help"]
    assert (done.code, done.loaded) == (0, []), done.err
    assert len(done.out.splitlines()) > 5


@pytest.mark.parametrize(("module", "words", "said"), WRONG)
def test_what_is_wrong_is_said_in_one_line_before_anything_heavy_is_loaded(
    module: str, words: list[str], said: str, ended: dict[tuple[str, ...], Ended]
) -> None:
    done = ended[module, *words]
    assert (done.code, done.loaded, done.out) == (1, [], ""), done.err
    assert done.err.startswith(f"error: {said}")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(("module", "words", "loaded"), RIGHT)
def test_what_takes_long_is_said_before_it_begins(
    module: str, words: list[str], loaded: str, ended: dict[tuple[str, ...], Ended]
) -> None:
    done = ended[module, *words]
    assert (done.code, done.loaded, done.err) == ("began", [], f"loading {loaded} ...\n")
