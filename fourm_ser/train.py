"""Train, test and report one experiment: fourm_ser train encoder=bert_wav2vec loss=ce_center."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import answer, be_brief, loading, start
from fourm_ser.config import CONF, refuse_missing, upgrade
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import sweeps
from fourm_ser.trust import read_trust


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train(config: DictConfig) -> float:
    """Run the composed experiment; returns the best validation UA, for sweepers that optimise it."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    upgrade(config)  # --config-path may name the record of an earlier version
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return sweeps.job(config)

    try:
        refuse_missing(config)
        words = HydraConfig.get().overrides.task
        check_config("train", config, words, classes=False)
        with loading():
            from fourm_ser.training.experiment import run

        check_config("train", config, words)

        folder = Path(HydraConfig.get().runtime.output_dir)
        return float(run(config, folder, own_process=True, tells_next=True)["val/ua"])
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def resume(arguments: list[str]) -> None:
    """Go on with a run; its own record is the config, so nothing else may be said."""
    folders = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    trust = [argument.removeprefix("trust=").strip("[]") for argument in arguments if argument.startswith("trust=")]
    others = [argument for argument in arguments if not argument.startswith(("resume=", "trust="))]
    if others or len(folders) != 1:
        what = " ".join(others) or "all but one"
        sys.exit(f"error: resume=DIR goes on with the run as its config.yaml records it: leave out {what}")
    be_brief()
    try:
        RunDirectory(Path(folders[0])).refuse_unrecorded()
        with loading():
            from fourm_ser.training import experiment

        packages = read_trust([name.strip() for names in trust for name in names.split(",") if name.strip()])
        experiment.resume(Path(folders[0]), own_process=True, trust=packages, tells_next=True)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """The command."""
    answer("train")
    if any(argument.startswith("resume=") and argument != "resume=null" for argument in sys.argv[1:]):
        resume(sys.argv[1:])
        return
    try:
        start(train)
    finally:
        sweeps.close()


if __name__ == "__main__":
    main()
