"""Look into a finished run: python -m fourm_ser.analyze run=DIR."""

import logging
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import one_line, quoted
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="analyze")
def analyze(config: DictConfig) -> None:
    """Do the analyses that the composed config names, and say where they are."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fourm_ser").setLevel(logging.INFO)
    for node, key in ((config, "runs"), (config, "parts"), (config.examples, "ids")):
        if isinstance(node[key], str):  # a single one, without brackets
            node[key] = [node[key]]
    try:
        check_config("analyze", config)
        from fourm_ser.analysis.analyses import run

        run(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """The command."""
    sys.argv[1:] = quoted(sys.argv[1:])
    with one_line():
        analyze()


if __name__ == "__main__":
    main()
