"""Where configs are, and from config nodes to objects: the one place where Hydra's `instantiate` is called."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fourm_ser.errors import InputError

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())


def refuse_missing(config: DictConfig) -> None:
    """Refuse a config in which a key waits for a value (`???`).

    Raises:
        InputError: the keys.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(f"config: nothing is given for {', '.join(missing)}. Add {missing[0]}=...")


def build(node: Any, **arguments: Any) -> Any:
    """Build what a config node describes, out of plain numbers, lists and dicts.

    Args:
        node: a config node, with `_target_` wherever a class stands.
        **arguments: further arguments of the node's class.

    Raises:
        InputError: what the class itself says of its arguments, or a key that it does not take.
    """
    try:
        return instantiate(node, **arguments, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            if isinstance(cause, TypeError) and "keywords must be strings" in str(cause):
                raise InputError('config: a key is no text: write "on" in quotes, YAML reads it as true.') from error
            if isinstance(cause, TypeError) and "argument" in str(cause):
                raise InputError(f"config: {str(cause).replace('.__init__()', '')}") from error
            cause = cause.__cause__
        if cause is None:
            raise
        raise InputError(_at_full_key(str(cause), str(error))) from None


def _at_full_key(message: str, error: str) -> str:
    """What a class says of `group.key`, said of the place where its node lies: `loss.terms.center.key`.

    Args:
        message: the class's message, which begins with the key as if the node lay at the top of its group.
        error: Hydra's message, whose last line names the node.
    """
    place = error.rpartition("full_key: ")[2].strip()
    group = place.partition(".")[0]
    is_short = message.startswith(f"{group}.") and not message.startswith(f"{place}.")
    return place + message.removeprefix(group) if is_short else message
