"""Write a trained network as an ONNX file, which runs without PyTorch: fourm_ser export model=DIR."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config
from fourm_ser.runs.given import refuse_unusable


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
def export(config: DictConfig) -> None:
    """Export as the composed config says, and say where the file is."""
    with told_plainly():
        run(config)


def run(config: DictConfig) -> None:
    """Export, and print what the file takes and gives.

    Raises:
        InputError: keys that are missing or wrong, no model, a network that cannot be exported exactly.
    """
    output = check(config)
    with loading():
        from fourm_ser.models.directory import load_model
        from fourm_ser.runs.directory import find_model
        from fourm_ser.sharing.onnx import export_onnx
        from fourm_ser.trust import read_trust

    model = load_model(find_model(config.model), Path(config.cache).expanduser(), read_trust(config.trust))
    try:
        ports = export_onnx(model, output)
    except OSError as error:
        said = error.strerror or error
        raise InputError(f"output={output}: nothing can be written there ({said}). Choose another place.") from error
    for port in ports:
        print(f"{port['name']}: {port['type']} {port['axes']}")
    print(f"written: {output}")


def check(config: DictConfig) -> Path:
    """Refuse keys that do not fit each other, before anything is loaded; returns where the file goes.

    Raises:
        InputError: the keys.
    """
    check_config("export", config)
    output = Path(config.output).expanduser()
    if output.suffix != ".onnx":
        raise InputError(f"output={config.output}: expected a file that ends in .onnx.")
    if output.exists() and not config.overwrite:
        raise InputError(f"output={output}: is there already. Choose another name, or replace it: overwrite=true")
    refuse_unusable(config.model)
    return output


def main() -> None:
    """The command."""
    start(export)


if __name__ == "__main__":
    main()
