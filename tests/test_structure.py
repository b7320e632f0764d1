"""The shape of the package: what imports what, and how much comes with it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "fourm_ser"
COMMANDS = ("train", "prepare", "evaluate", "predict", "push", "export", "serve", "analyze", "report.__main__")
# From low to high, and what stands in one row knows nothing of its neighbours. Files at the root that are not named
# here are below all.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("devices",),
    ("distributed",),
    ("kernels",),
    ("encoders",),
    ("data",),
    ("fusion", "losses", "figures"),
    ("models",),
    ("runs",),
    ("baselines", "prediction", "sharing"),
    ("training",),
    ("analysis",),
    ("report", "serving"),
    COMMANDS,
)


@cache
def imports() -> dict[str, set[str]]:
    """By each module's name in the package, the modules that it imports, also within functions and for types alone."""
    files = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports by a relative name"
                full = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                full = [alias.name for alias in node.names]
            else:
                continue
            for target in (word.removeprefix("fourm_ser.") for word in full if word.startswith("fourm_ser.")):
                graph[name] |= {target if target in files else target.rpartition(".")[0]} & set(files)
    return {name: targets - {name} for name, targets in graph.items()}


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A circle of a graph; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room(module: str) -> str:
    return module if module in COMMANDS else module.partition(".")[0]


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = imports()
    assert len(graph["prediction.predictor"]) > 5  # it is read
    assert not circle(graph)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in imports().items():
        rooms.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    assert not circle(rooms)


def test_arrows_point_downward() -> None:
    height = {name: number for number, names in enumerate(LAYERS, 1) for name in names}
    assert height.keys() <= {room(module) for module in imports()}
    upward = [
        f"{module} -> {target}"
        for module, targets in sorted(imports().items())
        for target in sorted(targets)
        if room(module) != room(target) and height.get(room(target), 0) >= height.get(room(module), 0.5)
    ]
    assert not upward


def test_commands_load_nothing_heavy_and_the_predictor_no_lightning() -> None:
    code = (
        "import importlib, sys\n"
        f"for command in {COMMANDS}: importlib.import_module('fourm_ser.' + command)\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules)))\n"
        "import fourm_ser.prediction.predictor\n"
        "heavy = {'pytorch_lightning', 'torchmetrics', 'transformers', 'pandas', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout == "[]\n[]\n", done.stdout + done.stderr


def test_the_map_for_contributors_names_every_file() -> None:
    written = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^- `([\w/]+\.py)`: ", written, re.MULTILINE)
    files = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert len(named) == len(set(named))
    assert set(named) == files
