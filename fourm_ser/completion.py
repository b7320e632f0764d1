"""Complete commands, groups, options and keys by <TAB>: eval "$(fourm_ser completion bash)"."""

import os
import sys

from fourm_ser.options import Described, describe
from fourm_ser.values import RULES, Choice, shown

CONFIGURED = ("train", "prepare", "evaluate", "predict", "push", "export", "serve", "analyze")
SCRIPTS = {
    "bash": """_fourm_ser() {
    local line=${COMP_LINE:0:COMP_POINT} word words
    [[ $line == *" " ]] && word="" || word=${line##* }
    local before=${word%"${COMP_WORDS[COMP_CWORD]##=}"}
    mapfile -t words < <(fourm_ser completion words "$line" 2>/dev/null)
    COMPREPLY=("${words[@]#"$before"}")
}
complete -o nospace -o default -o bashdefault -F _fourm_ser fourm_ser
""",
    "zsh": """_fourm_ser() {
    local -a found
    found=("${(@f)$(fourm_ser completion words "${LBUFFER}" 2>/dev/null)}")
    if [[ -n $found[1] ]]; then compadd -S '' -Q -a found; else _files -P "${PREFIX%%=*}="; fi
}
compdef _fourm_ser fourm_ser
""",
    "fish": """function __fourm_ser
    fourm_ser completion words (commandline -cp) 2>/dev/null
end
complete -c fourm_ser -a '(__fourm_ser)'
""",
}
HELP = """usage: fourm_ser completion bash|zsh|fish

bash: eval "$(fourm_ser completion bash)"    in ~/.bashrc
zsh:  eval "$(fourm_ser completion zsh)"     in ~/.zshrc, behind compinit
fish: fourm_ser completion fish | source     in ~/.config/fish/config.fish"""


def main() -> None:
    """The command: a shell's script, or (`words LINE`) how the last word of a line could go on."""
    shell, *rest = sys.argv[1:] or ["--help"]
    if shell in SCRIPTS:
        print(SCRIPTS[shell], end="")
    elif shell == "words":
        print("\n".join(completions(rest[0] if rest else "")))
    elif shell in ("--help", "-h"):
        print(HELP)
    else:
        sys.exit(f"error: completion {shell}: expected one of {', '.join(SCRIPTS)}.")


def completions(line: str) -> list[str]:
    """What the last word of a command line could be, its beginning included; none where it is a path or free."""
    from fourm_ser.__main__ import COMMANDS

    _, *words = line.split()
    last = "" if line.endswith((" ", "\t")) or not words else words.pop()
    if not words:
        return [f"{name} " for name in [*COMMANDS, "--help", "--version"] if name.startswith(last)]
    if words[0] == "completion":
        return [name for name in SCRIPTS if name.startswith(last)]
    if words[0] not in CONFIGURED:
        return []
    sign = last[: len(last) - len(last.lstrip("+~"))]
    found = _next(words[0], describe(words[0], words[1:]), last.removeprefix(sign))
    return sorted({sign + word for word in found})


def _next(command: str, described: Described, word: str) -> list[str]:
    """Groups, their options, or keys down to the next dot; of a key that takes a few values, these."""
    place, is_value, value = word.partition("=")
    if is_value:
        options = next((group.options for group in described.groups if group.name == place), None)
        if options is None:
            key = described.leaves().get(place)
            rule = RULES.get(command, {}).get(place)
            if isinstance(rule, Choice):
                options = [shown(allowed) for allowed in rule.values]
            else:
                options = [] if key is None or "/" in value or os.path.exists(value) else [key.written]
        return [f"{place}={option} " for option in options if option.startswith(value)]
    found = [f"{group.name}=" for group in described.groups if group.name.startswith(word)]
    for path in described.leaves():
        if path.startswith(word):
            rest = path[len(word) :]
            head, dot, _ = rest.partition(".")
            found.append(word + head + (dot or "="))
    return found


if __name__ == "__main__":
    main()
