"""Docstrings are read an entry at a time, as an editor shows them over a parameter."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fourm_ser"

ENTRY = re.compile(r"(\*{0,2}\w+(?:(?:, |/| and )\*{0,2}\w+)*):(?: |$)")
RUNS_ON = re.compile(r"(\band|,|;)$")  # into the next entry
LEANS = re.compile(r"see `|likewise\b|the same\b|of (?!what\b)")  # on another entry, or on the name alone


def entries(node: ast.ClassDef | ast.FunctionDef, section: str) -> dict[str, str]:
    """What a section of a docstring says of each name."""
    found: dict[str, str] = {}
    lines = (ast.get_docstring(node) or "").partition(f"\n{section}:\n")[2].splitlines()
    name = ""
    for line in lines:
        if line and not line.startswith("    "):
            break  # the next section
        entry = ENTRY.match(line[4:])
        if entry is not None:
            name = entry[1]
        found[name] = f"{found.get(name, '')} {line[4 + (entry.end() if entry else 0) :].strip()}".strip()
    return found


def parameters(function: ast.FunctionDef) -> set[str]:
    given = function.args
    names = {argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)} - {"self", "cls"}
    return names | {stars + more.arg for stars, more in (("*", given.vararg), ("**", given.kwarg)) if more}


def described(node: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[set[str], set[str]]]:
    """The names that a signature, or a class without a constructor, has, and those that the docstring speaks of."""
    if isinstance(node, ast.FunctionDef):
        makers = [node]
    else:
        makers = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
        if not makers and entries(node, "Attributes"):
            yield {field.id for field in fields if isinstance(field, ast.Name)}, set(entries(node, "Attributes"))
    if makers and entries(node, "Args"):
        yield parameters(makers[0]), set(entries(node, "Args"))


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        for section in ("Args", "Attributes", "Raises"):
            for name, text in entries(node, section).items():
                if section != "Raises" and not name.lstrip("*").isidentifier():
                    yield f"{node.name}: one entry for {name}"
                if RUNS_ON.search(text):
                    yield f"{node.name}: the entry {name} runs on into the next: {text[-30:]}"
                if LEANS.match(text):
                    yield f"{node.name}: the entry {name} says nothing by itself: {text}"
        for has, told in described(node):
            yield from (f"{node.name}: has no {name}" for name in sorted(told - has))
            yield from (f"{node.name}: {name} is not described" for name in sorted(has - told))


def test_each_entry_of_a_docstring_stands_alone_and_fits_the_signature() -> None:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    found = {name: list(offences(path.read_text(encoding="utf-8"))) for name, path in files.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_entries_that_lean_on_others_are_found() -> None:
    source = '''
def draw(table, low, high, seed):
    """Draw.

    Args:
        table: the numbers, and
        low, high: the range.
        seed: see `other`.
        size: the size.

    Returns:
        Points, and
    """
'''
    assert sorted(offences(source)) == [
        "draw: has no low, high",
        "draw: has no size",
        "draw: high is not described",
        "draw: low is not described",
        "draw: one entry for low, high",
        "draw: the entry seed says nothing by itself: see `other`.",
        "draw: the entry table runs on into the next: the numbers, and",
    ]
