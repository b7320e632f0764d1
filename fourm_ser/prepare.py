"""Prepare a corpus and look at it: fourm_ser prepare data=iemocap data.root=DIR."""

import json
import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF, build, refuse_missing
from fourm_ser.errors import InputError
from fourm_ser.files import regular
from fourm_ser.keys import check_config


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="prepare")
def prepare(config: DictConfig) -> None:
    """Prepare the composed corpus and print what is in it."""
    with told_plainly(logging.WARNING):
        show(config)


def show(config: DictConfig) -> None:
    """Write the corpus's manifest and print its tables, and the split where it is asked for.

    Raises:
        InputError: what `Corpus.load`, `Corpus.setup` and `check_split_file` refuse.
    """
    check_config("prepare", config, classes=False)
    refuse_missing(config)
    target = None if config.write_split is None else Path(config.write_split).expanduser()
    if target is not None:
        check_split_file(target)
    with loading("pandas"):
        from fourm_ser.data.corpus import Corpus
        from fourm_ser.data.splits import write_split
        from fourm_ser.data.summary import print_split, print_summary

    check_config("prepare", config)
    OmegaConf.set_struct(config, False)
    show_split = config.data.pop("show_split")
    corpus: Corpus = build(config.data, cache=Path(config.cache).expanduser())
    folder = corpus.prepare()
    print_summary(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    if show_split or target is not None:
        corpus.setup()
    if show_split:
        print_split(corpus.frame, corpus.split, corpus.emotions, corpus.protocol_record())
    if target is not None:
        write_split(corpus.frame, corpus.split, target)
        print(f"split: {target}")
    print(f"manifest: {folder / 'manifest.csv'} (audio relative to {corpus.audio_root})")
    print(f"beside it: summary.json, left_out.csv ({len(corpus.left_out)} rows)")


def check_split_file(path: Path) -> None:
    """Refuse to write a split in the place of another file.

    Raises:
        InputError: there is something that is no split file.
    """
    if path.is_dir():
        raise InputError(f"write_split={path}: is a folder. Give a file: write_split={path / 'split.csv'}")
    if not path.exists():
        return
    with regular(path).open(encoding="utf-8-sig", errors="replace") as stream:
        columns = [name.strip() for name in stream.readline().split(",")]
    if columns != ["id", "split"]:
        raise InputError(f"write_split={path}: is there already and is no split file (id,split). Choose another name.")


def main() -> None:
    """The command."""
    start(prepare)


if __name__ == "__main__":
    main()
