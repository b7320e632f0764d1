"""Words of a command line that are neither key=value nor a flag, answered with how they are written."""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from fourm_ser.options import Described, describe

TAKES_RUN = {
    "train": "resume",
    "evaluate": "run",
    "analyze": "run",
    "push": "run",
    "predict": "model",
    "export": "model",
    "serve": "model",
}
SOUND = {".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4", ".aif", ".aiff", ".opus", ".webm"}
ALONE = {  # Hydra's flags that stand alone
    *("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"),
    *("-sc", "--shell-completion"),
}
VALUED = {  # and those that a value follows
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("--experimental-rerun", "-i", "--info"),
}


def mistake(command: str, words: Sequence[str]) -> str:
    """What is wrong with the words of a command line, and how they are written; empty where they may be right."""
    wrong: list[str] = []
    written: list[str] = []
    described = None
    left = list(words)
    while left:
        word = left.pop(0)
        flag = word.partition("=")[0]
        if flag in VALUED:
            if flag == word and left and "=" not in left[0]:
                del left[:1]
            continue
        is_flag = word.startswith("-") and flag not in ("-", "--")
        if flag in ALONE or (not is_flag and ("=" in word or word.startswith("~"))) or word == "":
            continue
        described = described or describe(command, words)
        place = len(words) - len(left) - 1
        if is_flag:
            found = _of_flag(word, left, described)
        elif place and words[place - 1].startswith("text="):  # what is said, without quotes
            rest = [word]
            while left and "=" not in left[0] and not left[0].startswith("-"):
                rest.append(left.pop(0))
            found = " ".join([words[place - 1], *rest])
        elif word in described.leaves() and left and "=" not in left[0] and not left[0].startswith("-"):
            found = f"{word}={left.pop(0)}"
        else:
            found = _of_word(command, word, described)
        wrong.append(word)
        written.append(found)
    if not wrong:
        return ""
    said = f"{shlex.join(wrong)}: expected key=value."
    meant = shlex.join(word for word in written if word)
    return f"{said} Did you mean {meant}?" if meant else f"{said} `fourm_ser {command} --help` has the keys."


def _of_flag(word: str, left: list[str], described: Described) -> str:
    """What a flag that nobody has could be: a key, with the value behind it, or another flag."""
    flag, sign, value = word.partition("=")
    name = flag.lstrip("-").replace("-", "_")
    flags = get_close_matches(flag, [*ALONE, *VALUED], n=1, cutoff=0.7)
    if flags and flag.startswith("--"):
        return flags[0]
    if not sign and left and not left[0].startswith("-") and "=" not in left[0]:
        value = left.pop(0)
    keys = [*described.leaves(), *(group.name for group in described.groups)]
    if name in keys:
        return f"{name}={value or '...'}"
    near = _nearest(name, keys)
    return f"{near}={value or '...'}" if near else ""


def _nearest(name: str, keys: Sequence[str]) -> str:
    """The key that ends with a name, `stage.transfer.epochs` for `epochs`, or else one that is spelt alike."""
    ends = [key for key in keys if key.endswith(f".{name}")]
    return (ends or get_close_matches(name, keys, n=1) or [""])[0]


def _of_word(command: str, word: str, described: Described) -> str:
    """The key=value that a bare word could be: a run, a recording, a table, a group's option, a key without value."""
    path = Path(word).expanduser()
    keys = described.leaves()
    groups = {group.name: group.options for group in described.groups if "@" not in group.name}
    if word in keys or word in groups:
        return f"{word}=..."
    option = next((name for name, options in groups.items() if word in options), None)
    if path.suffix.lower() in SOUND:
        return f"audio={word}" if "audio" in keys else ""
    if path.suffix.lower() in (".csv", ".tsv"):
        return f"manifest={word}" if "manifest" in keys else f"data=manifest data.manifest={word}"
    if path.is_dir() or "/" in word:
        key = TAKES_RUN.get(command, "data.root")
        is_run = any((path / name).exists() for name in ("config.yaml", "labels.json", "model"))
        if command == "predict" and path.is_dir() and not is_run:
            key = "audio"
        return f"{key}={word}"
    if option is not None:
        return f"{option}={word}"
    near = _nearest(word, [*keys, *groups])
    return f"{near}=..." if near else ""
