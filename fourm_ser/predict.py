"""Predict emotions: fourm_ser predict model=DIR audio=FILE text="what is said"."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.errors import InputError, printable
from fourm_ser.keys import check_config
from fourm_ser.prediction.table_file import check_array_file, check_table, table_path
from fourm_ser.runs.given import refuse_unusable

LITERAL = ("model", "audio", "text", "manifest", "output", "embeddings", "asr")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="predict")
def predict(config: DictConfig) -> None:
    """Predict as the composed config says; exit code 1 where a recording could not be predicted on."""
    with told_plainly():
        failed = run(config)
    if failed:
        sys.exit(1)


def run(config: DictConfig) -> int:
    """Predict, print, and write what there is to write; returns how many recordings could not be predicted on.

    Raises:
        InputError: keys that do not fit each other, no model, and what a single recording is refused for.
    """
    table = check(config)
    with loading():
        from fourm_ser.prediction.items import Cutting, Item
        from fourm_ser.prediction.listing import find_recordings, read_listing
        from fourm_ser.prediction.output import predict_many, predict_one
        from fourm_ser.prediction.predictor import Predictor

    predictor = Predictor.load(
        config.model,
        device=config.device,
        asr=config.asr,
        asr_language=None if config.asr_language is None else str(config.asr_language),
        cache=config.cache,
        trust=config.trust,
        batch_size=config.batch_size,
        batch_seconds=config.batch_seconds,
        workers=config.workers,
        embeddings=config.embeddings is not None,
    )
    cutting = Cutting.of(config.window, config.hop, config.auto_window, predictor.max_seconds)
    audio = None if config.audio is None else Path(config.audio).expanduser()
    json = config.format == "json"
    embeddings = None if config.embeddings is None else Path(config.embeddings).expanduser()
    if not is_many(config):
        predictor.workers = 0
        name, even_whole = config.audio or "", config.output is not None
        item = Item(audio, config.text)
        places = {"table": table, "embeddings": embeddings}
        predict_one(predictor, item, cutting, name=name, even_whole=even_whole, json=json, **places)
        return 0
    if audio is None:
        entries = read_listing(Path(config.manifest).expanduser(), predictor.modalities)
    elif config.text is None:
        entries = find_recordings(audio)
    else:
        raise InputError("text: a text belongs to one recording, and audio is a folder. Use manifest=FILE.")
    assert table is not None
    return predict_many(predictor, entries, cutting, table=table, json=json, embeddings=embeddings)


def check(config: DictConfig) -> Path | None:
    """Refuse keys that do not fit each other, before anything is loaded; returns where the table goes, if anywhere.

    Raises:
        InputError: the keys.
    """
    check_config("predict", config)
    if config.model is None:
        raise InputError("model: nothing is given. Add model=DIR, the folder model/ of a finished run.")
    given = [key for key in ("audio", "text", "manifest") if config[key] is not None]
    if not given:
        ways = "audio=FILE, audio=FOLDER, text='what is said' or manifest=FILE"
        raise InputError(f"audio: nothing is given to predict on. Add {ways}.")
    if "manifest" in given and len(given) > 1:
        raise InputError(f"{' and '.join(given)}: expected either a manifest, or audio and text.")
    if config.text is not None and printable(str(config.text)) != str(config.text):
        raise InputError(f"text: {config.text} is not UTF-8. Set the terminal's encoding to UTF-8.")
    for key in ("model", "audio", "manifest", "asr", "output", "embeddings"):
        if config[key] == "":
            raise InputError(f"{key}: the path is empty.")
    if config.asr_language is not None and config.asr is None:
        raise InputError(f"asr_language={config.asr_language}: there is no recogniser. Add asr=..., or leave it out.")
    manifest = None if config.manifest is None else Path(config.manifest).expanduser()
    is_cut = manifest is not None or config.window is not None
    table = table_path(config.output, config.manifest or config.audio, is_cut)
    if table is not None:
        is_certain = config.output is not None or is_many(config)
        check_table(table, manifest, overwrite=config.overwrite, is_certain=is_certain)
    refuse_unusable(config.model)
    if config.embeddings is not None:
        check_array_file(Path(config.embeddings).expanduser(), overwrite=config.overwrite)
    return table


def is_many(config: DictConfig) -> bool:
    """Whether a manifest or a folder is predicted on."""
    return config.manifest is not None or (config.audio is not None and Path(config.audio).expanduser().is_dir())


def main() -> None:
    """The command."""
    start(predict, LITERAL)


if __name__ == "__main__":
    main()
