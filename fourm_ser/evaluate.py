"""Test a trained model on any side of any corpus: fourm_ser evaluate run=DIR."""

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.keys import check_config
from fourm_ser.runs.given import evaluated


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def evaluate(config: DictConfig) -> None:
    """Evaluate as the composed config says, and print the tables."""
    from hydra.core.hydra_config import HydraConfig

    own = HydraConfig.get().runtime.choices.get("data") is None
    words = [word.partition("=")[0].lstrip("+") for word in HydraConfig.get().overrides.task]
    changes = {key: OmegaConf.select(config, key) for key in words if key.startswith("data.")}
    with told_plainly():
        evaluated(config, other_corpus=not own)
        check_config("evaluate", config)
        with loading():
            from fourm_ser.runs.evaluation import evaluate as evaluate_model

        evaluate_model(config, changes if own else None)


def main() -> None:
    """The command."""
    start(evaluate)


if __name__ == "__main__":
    main()
