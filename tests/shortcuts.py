"""What keeps the tests' many runs short, and changes nothing that a test sees."""

import copy
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.defaults_list import create_defaults_list as list_defaults
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig


@contextmanager
def composing_once(conf: Path) -> Iterator[None]:
    """Hydra reads and merges the files of `conf` once for each choice of options, whatever else a command line sets.

    What is composed of other folders, and what fails, is as without this.
    """
    files: dict[str, ConfigResult] = {}
    lists: dict[Any, DefaultsList] = {}
    merged: dict[int, DictConfig] = {}
    load, merge = FileConfigSource.load_config, ConfigLoaderImpl._compose_config_from_defaults_list

    def load_once(self: FileConfigSource, config_path: str) -> ConfigResult:
        if self.path != str(conf):
            return load(self, config_path)
        if config_path not in files:
            files[config_path] = load(self, config_path)
        return copy.deepcopy(files[config_path])

    def list_once(repo: Any, config_name: Any, overrides_list: Any, **how: Any) -> DefaultsList:
        if [source.path for source in repo.get_sources() if source.scheme() == "file"] != [str(conf)]:
            return list_defaults(repo=repo, config_name=config_name, overrides_list=overrides_list, **how)
        values = Overrides(repo=repo, overrides_list=overrides_list).config_overrides
        options = [override.input_line for override in overrides_list if override not in values]
        key = (config_name, *options, *sorted(how.items()))
        if key not in lists:
            lists[key] = list_defaults(repo=repo, config_name=config_name, overrides_list=overrides_list, **how)
        found = copy.copy(lists[key])
        found.config_overrides = values
        return found

    def merge_once(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> DictConfig:
        if not any(found.defaults is defaults for found in lists.values()):
            return merge(self, defaults, repo)
        if id(defaults) not in merged:
            merged[id(defaults)] = merge(self, defaults, repo)
        return copy.deepcopy(merged[id(defaults)])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileConfigSource, "load_config", load_once)
        patched.setattr(config_loader_impl, "create_defaults_list", list_once)
        patched.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        yield


@contextmanager
def disk_unhurried() -> Iterator[None]:
    """Nothing waits until what it wrote has reached the disk: tests kill processes, never the machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@contextmanager
def imports_kept() -> Iterator[None]:
    """What was imported before the first test, which lasts to the end, is no longer looked through for garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
