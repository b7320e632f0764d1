"""Serve a model as a page and an HTTP interface: fourm_ser serve model=DIR."""

import sys

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config
from fourm_ser.runs.given import refuse_unusable

LITERAL = ("model", "asr")
LOCAL = ("127.0.0.1", "localhost", "::1")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="serve")
def serve(config: DictConfig) -> None:
    """Serve as the composed config says, until it is stopped."""
    with told_plainly():
        run(config)


def run(config: DictConfig) -> None:
    """Load the model and serve it.

    Raises:
        InputError: keys out of range, no model, a package that is missing.
    """
    check(config)
    with loading():
        try:
            import uvicorn

            from fourm_ser.serving.app import make_app
        except ModuleNotFoundError as error:
            raise InputError(f'{error.name} is not installed. pip install "fourm_ser[serve]"') from error
        from fourm_ser.prediction.items import Cutting
        from fourm_ser.prediction.predictor import Predictor
        from fourm_ser.serving.desk import Desk

    predictor = Predictor.load(
        config.model,
        device=config.device,
        asr=config.asr,
        asr_language=None if config.asr_language is None else str(config.asr_language),
        cache=config.cache,
        trust=config.trust,
        batch_size=config.batch_size,
        batch_seconds=config.batch_seconds,
    )
    cutting = Cutting.of(config.window, config.hop, config.auto_window, predictor.max_seconds)
    app = make_app(
        Desk(predictor, cutting, config.waiting),
        transcribes=config.asr is not None,
        max_megabytes=config.max_megabytes,
        max_seconds=config.max_seconds,
        hosts=[*LOCAL, "[::1]", *config.names] if config.host in LOCAL or config.names else ["*"],
    )
    where = f"[{config.host}]" if ":" in config.host else config.host
    print(f"http://{where}:{config.port}  (the interface: /docs; Ctrl-C ends it)", flush=True)
    if config.host not in LOCAL:
        print("it listens beyond this machine, and asks nobody for a password", file=sys.stderr, flush=True)
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning")


def check(config: DictConfig) -> None:
    """Refuse keys that do not fit, before anything is loaded.

    Raises:
        InputError: the key.
    """
    check_config("serve", config)
    if config.asr_language is not None and config.asr is None:
        raise InputError(f"asr_language={config.asr_language}: there is no recogniser. Add asr=..., or leave it out.")
    refuse_unusable(config.model)


def main() -> None:
    """The command."""
    start(serve, LITERAL)


if __name__ == "__main__":
    main()
