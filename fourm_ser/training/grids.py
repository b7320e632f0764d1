"""A sweeper of several grids: Hydra's basic one makes the product of all choices, a study is a union of products."""

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

Plugins.instance()  # executes the modules of its plugins, also those imported already: their classes are others then
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

Grid = Mapping[str, str]  # choices by key, as in `hydra.sweeper.params`


class GridsSweeper(BasicSweeper):
    """The jobs of several grids, each once. What `params` and the command line say holds in all of them."""

    def __init__(self, grids: Sequence[Grid], max_batch_size: int | None = None, params: Grid | None = None) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.grids = grids

    def split_arguments(  # type: ignore[override]  # a static method there, which knows of no grids
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The batches of jobs, each as `key=value` words."""
        grids = each_grid(self.grids, overrides, self.hydra_context.config_loader)  # type: ignore[union-attr]
        return [list(batch) for batch in self.split_overrides_to_chunks(jobs_of(grids), max_batch_size)]


def each_grid(grids: Iterable[Grid], overrides: list[Override], loader: ConfigLoader) -> list[list[Override]]:
    """What is chosen in each grid, by key, where some choices hold in all; without grids, those alone."""
    parser = OverridesParser.create(loader)
    words: list[list[str]] = [[f"{key}={value}" for key, value in grid.items()] for grid in grids] or [[]]
    found = list[list[Override]]()
    for own in words:
        last: dict[Any, Override] = {}
        for override in [*parser.parse_overrides(own), *overrides]:
            last[override.get_key_element()] = override
        found.append(list(last.values()))
    return found


def jobs_of(grids: Iterable[list[Override]]) -> list[list[str]]:
    """The jobs of all grids in their order, each once, as `key=value` words."""
    jobs = [job for choices in grids for job in BasicSweeper.split_arguments(choices, None)[0]]
    first: dict[frozenset[str], list[str]] = {}
    for job in jobs:
        first.setdefault(frozenset(job), job)
    return list(first.values())


def register() -> None:
    """Make the sweeper known to Hydra, which takes plugins from modules below `hydra_plugins` alone."""
    plugins = Plugins.instance()
    try:
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # no other plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    name = GridsSweeper.__module__ = "hydra_plugins.fourm_ser"
    sys.modules[name] = sys.modules[__name__]
    setattr(package, "fourm_ser", sys.modules[name])  # noqa: B010  # by this name Hydra looks for it
    plugins.register(GridsSweeper)
