"""Look into a finished run: fourm_ser analyze run=DIR."""

import hydra
from omegaconf import DictConfig, OmegaConf

from fourm_ser.analysis.questions import refuse_unknown
from fourm_ser.commandline import loading, start, told_plainly
from fourm_ser.config import CONF
from fourm_ser.keys import check_config
from fourm_ser.runs.given import analyzed


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="analyze")
def analyze(config: DictConfig) -> None:
    """Do the analyses that the composed config names, and say where they are."""
    for node, key in ((config, "runs"), (config, "parts"), (config.examples, "ids")):
        if isinstance(node[key], str):  # a single one, without brackets
            node[key] = [node[key]]
    with told_plainly():
        check_config("analyze", config)
        refuse_unknown(config.parts)
        analyzed([config.run, *config.runs])
        with loading():
            from fourm_ser.analysis.analyses import analyze as analyze_run

        analyze_run(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def main() -> None:
    """The command."""
    start(analyze)


if __name__ == "__main__":
    main()
