"""Put a run's model on the Hugging Face hub, with a model card: fourm_ser push run=DIR repo=USER/NAME."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config
from fourm_ser.runs.directory import RunDirectory

LITERAL = ("message",)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="push")
def push(config: DictConfig) -> None:
    """Push as the composed config says, and say where the model is and how it is used."""
    with told_plainly():
        run(config)


def run(config: DictConfig) -> None:
    """Push, and print where the model is.

    Raises:
        InputError: keys that are missing or wrong, a run that cannot be shared, a hub that does not take it.
    """
    check_config("push", config)
    for key, example in (("run", "DIR, the directory of a finished run"), ("repo", "<user>/<name>")):
        if not config[key]:
            raise InputError(f"{key}: nothing is given. Add {key}={example}.")
    RunDirectory(Path(config.run).expanduser()).refuse_unfinished()
    with loading():
        from fourm_ser.sharing.publish import push as push_run

    pushed = push_run(
        Path(config.run).expanduser(),
        config.repo,
        private=config.private,
        licence=config.license,
        message=config.message,
        card=config.card,
        resamples=config.resamples,
        seed=config.seed,
    )
    print(f"pushed: {pushed.url}{' (private)' if pushed.private else ''}")
    print(f"fourm_ser predict model={pushed.repo}@{pushed.commit} audio=FILE")


def main() -> None:
    """The command."""
    start(push, LITERAL)


if __name__ == "__main__":
    main()
