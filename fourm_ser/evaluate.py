"""Test a trained model on any side of any corpus: python -m fourm_ser.evaluate run=DIR."""

import logging
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import one_line, quoted
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def evaluate(config: DictConfig) -> None:
    """Evaluate as the composed config says, and print the tables."""
    from hydra.core.hydra_config import HydraConfig

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fourm_ser").setLevel(logging.INFO)
    own = HydraConfig.get().runtime.choices.get("data") is None
    words = [word.partition("=")[0].lstrip("+") for word in HydraConfig.get().overrides.task]
    changes = {key: OmegaConf.select(config, key) for key in words if key.startswith("data.")}
    try:
        check_config("evaluate", config)
        from fourm_ser.runs.evaluation import run

        run(config, changes if own else None)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """The command."""
    sys.argv[1:] = quoted(sys.argv[1:])
    with one_line():
        evaluate()


if __name__ == "__main__":
    main()
