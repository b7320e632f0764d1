"""Train, test and report one experiment: python -m fourm_ser.train encoder=bert_wav2vec loss=ce_center."""

import hashlib
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.config import CONF
from fourm_ser.errors import InputError

# A sweep's cell is named by what was chosen, so that a sweep started again finds its jobs.
OmegaConf.register_new_resolver("cell", lambda text: hashlib.blake2b(text.encode(), digest_size=6).hexdigest())


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(config: DictConfig) -> float:
    """Run the composed experiment; returns the best validation UA, for sweepers that optimise it."""
    from hydra.core.hydra_config import HydraConfig

    from fourm_ser.experiment import run

    try:
        return float(run(config, Path(HydraConfig.get().runtime.output_dir))["val/ua"])
    except InputError as error:
        sys.exit(f"error: {error}")


def resume(arguments: list[str]) -> None:
    """Go on with a run; its own record is the config, so nothing else may be said."""
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if others or len(arguments) != 1:
        sys.exit(f"error: resume=DIR goes on with the run as its config.yaml records it: leave out {' '.join(others)}")
    from fourm_ser import experiment

    try:
        experiment.resume(Path(arguments[0].removeprefix("resume=")))
    except InputError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """The command."""
    if any(argument.startswith("resume=") and argument != "resume=null" for argument in sys.argv[1:]):
        resume(sys.argv[1:])
    else:
        train()


if __name__ == "__main__":
    main()
