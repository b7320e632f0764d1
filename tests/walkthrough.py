"""Type README's commands in a fresh clone, one after the other: python -m tests.walkthrough [--without "make test"].

The clone lies in a temporary folder that is also its home: there is no cache and no environment but what the commands
make (pip keeps its own cache of downloads). All run in one shell, as a reader types them; `my.csv` is a table of some
of the demo's recordings. Where a command asks for weights that only the hub has, or would take hours on two cores,
`CHANGED` says what is typed instead, and each such line is shown. Printed are each command's seconds and exit code;
the last lines of one that failed, and exit code 1, where there is any. It takes long: the tests are among them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHORT = "data.utterances=60 encoder.weights=random stage.transfer.steps=4"
CHANGED = {  # what of a command is typed otherwise
    "encoder=minilm_whisper_base": "encoder=tiny",
    "encoder=bert_wav2vec loss=ce_center": f"encoder=bert_wav2vec loss=ce_center {SHORT} stage=transfer",
    "encoder=bert_wav2vec encoder.weights=random": f"encoder=bert_wav2vec {SHORT} stage=transfer",
    "experiment=memocmt loss=ce_center": (
        "experiment=memocmt loss=ce_center data.utterances=60 encoder.weights=random stage.transfer.epochs=1"
    ),
    "fourm_ser serve model=$RUN": "timeout --signal=INT 60 fourm_ser serve model=$RUN; test $? -eq 124",
}
TABLE = """
import csv, glob, os
(found,) = glob.glob(os.path.expanduser("~/.cache/fourm_ser/manifests/demo-*/manifest.csv"))
(folder,) = glob.glob(os.path.expanduser("~/.cache/fourm_ser/corpora/demo-*/"))
rows = list(csv.DictReader(open(found)))[::8]
names = ["id", "audio", "text", "emotion", "speaker"]
with open("my.csv", "w", newline="") as file:
    table = csv.DictWriter(file, names, extrasaction="ignore")
    table.writeheader()
    for row in rows:
        row["audio"] = os.path.relpath(os.path.join(folder, row["audio"]))
        table.writerow(row)
"""
LAST = 15  # lines of a failed command that are shown


def commands(page: str) -> list[str]:
    """The commands of a page's blocks of bash, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.S | re.M)
    return [line for block in blocks for line in re.split(r"(?<!\\)\n", block.strip()) if line.strip()]


def typed(command: str) -> str:
    """What is typed for a command."""
    for words, others in CHANGED.items():
        command = command.replace(words, others)
    return command


class Shell:
    """A shell that goes on from command to command, in a folder."""

    def __init__(self, folder: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TERM", "USER")}
        cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True)
        environment = {**kept, "HOME": str(folder.parent), "PIP_CACHE_DIR": cache.stdout.strip(), "HF_HUB_OFFLINE": "1"}
        self.output = folder.parent / "output"
        self.process = subprocess.Popen(
            ["bash"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def type(self, command: str) -> tuple[int, list[str]]:
        """Type a command; returns its exit code and the lines that it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{{ {command}\n}} > '{self.output}' 2>&1 < /dev/null\necho $?\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, self.output.read_text(errors="replace").splitlines()


def main() -> None:
    """Clone, type and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", action="append", default=[], metavar="COMMAND", help="leave a command out")
    parser.add_argument("--page", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as home:
        clone = Path(home) / "fourm_ser"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        shell = Shell(clone)
        for number, command in enumerate(commands(options.page.read_text(encoding="utf-8"))):
            if any(command.startswith(left_out) for left_out in options.without):
                continue
            if "my.csv" in command and not (clone / "my.csv").is_file():
                subprocess.run([sys.executable, "-c", TABLE], cwd=clone, env={"HOME": home}, check=True)
            started = time.monotonic()
            code, lines = shell.type(typed(command))
            changed = "" if typed(command) == command else f"\n      typed: {typed(command)}"
            print(f"{number:3} {time.monotonic() - started:6.1f} s, exit code {code}: {command}{changed}", flush=True)
            if code:
                failed += 1
                print("\n".join(f"      | {line}" for line in lines[-LAST:]), flush=True)
    print(f"{failed} commands failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
