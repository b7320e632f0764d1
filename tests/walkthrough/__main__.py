"""Type the pages' commands in a fresh clone: python -m tests.walkthrough [PAGE ...] [--without "make test"].

The clone lies in a temporary folder that is also its home: there is no cache and no environment but what the commands
make (pip keeps its own cache of downloads). All run in one shell, as a reader types them, page after page: README, then
docs/ in the order of their contents; a command that an earlier page has is not typed again. The hub is one on the
loopback, with small checkpoints of random weights under the names of the true ones; `my.csv` and the other tables and
recordings are the demo's, and IEMOCAP and ESD small releases made up. `TYPED` says what else is typed otherwise, and
each such line is shown: paths that stand for a reader's own, VGGish's weights, which only their authors' pages have
(for want of them 4M-SER's study is planned alone), and sweeps, which would take hours on two cores. Printed are each
command's seconds and exit code; the last lines of one that failed, and exit code 1, where there is any. It takes long:
the tests are among them.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.hub.server import Hub
from tests.walkthrough import places

ROOT = Path(__file__).resolve().parent.parent.parent
LAST = 15  # lines of a failed command that are shown
FIRST = ("make demo", "source .venv/bin/activate")  # nothing can be typed before
TYPED = [  # (what a command has, what is typed instead): in this order
    # paths
    (r"\b(run|model)=DIR\b", r"\1=$DEMO"),
    (r"outputs/2026-01-31/12-00-00", "$DEMO"),
    (r"outputs/2026-02-01", "outputs/$(date +%F)"),
    (r"multirun/losses/1a2b3c", "$(ls -d multirun/losses/*/ | head -n 1)"),
    (r"multirun/2026-01-31/12-00-00", "$(ls -d multirun/2*/* | tail -n 1)"),
    (r"'examples.ids=\[Ses01F_0023\]'", '"examples.ids=[$(sed -n 2p $DEMO/predictions.csv | cut -d, -f1)]"'),
    (r"(sweep=paper_memocmt.* data\.root=)DIR", r"\1$HOME/releases"),
    (r"data\.root=DIR", "data.root=$HOME/releases/iemocap"),
    (r"/data/IEMOCAP_full_release", "$HOME/releases/iemocap"),
    (r"/data/ESD", "$HOME/releases/esd"),
    # weights
    (
        r"fourm_ser train experiment=4m_ser\b",
        r"\g<0> encoder.audio.weights=random encoder.audio.pca=$HOME/postprocessing.pth",
    ),
    (r"sweep=paper_4m_ser", r"\g<0> sweep.dry_run=true"),
    (r"multirun/paper_4m_ser", "multirun/paper_memocmt"),
    (r"encoder=tiny,bert_vggish", "encoder=tiny,bert_wav2vec"),
    (r"(encoder=bert_wav2vec encoder.weights=random)", r"\1 data.utterances=60 stage=transfer stage.transfer.steps=4"),
    # length
    (r"sweep=grid(?!.*dry_run)", "sweep=grid seed=0 encoder=bert_hubert,roberta_wavlm loss=ce,ce_arcface"),
    (r"sweep=paper_memocmt", r"\g<0> stage.transfer.epochs=1"),
    (r"(fourm_ser train experiment=4m_ser\b.*stage=4m_ser_one)", r"\1 stage.transfer.epochs=1"),
    (r"(fourm_ser train experiment=4m_ser\b)(?!.*stage=4m)", r"\1 stage.transfer.epochs=1 stage.finetune.epochs=1"),
    (r"(fourm_ser train experiment=4m_ser\b)(?!.*data=)", r"\1 data.utterances=60"),
    (r"(fourm_ser train experiment=memocmt\b)", r"\1 stage.transfer.epochs=1"),
    (r"fourm_ser train -m experiment=from_scratch", r"\g<0> stage.from_scratch.epochs=1"),
    (r"fourm_ser train -m(?!.*stage)", r"\g<0> stage=transfer stage.transfer.steps=20"),
    (r"fourm_ser train -m(?=.*stage=transfer)(?!.*stage\.)", r"\g<0> stage.transfer.steps=20"),
    (r"(fourm_ser train sweep=(?:grid|losses)\b)(?!.*dry_run)", r"\1 stage=transfer stage.transfer.steps=20"),
    # servers
    (r"^fourm_ser serve model=\$RUN", "timeout --signal=INT 60 fourm_ser serve model=$RUN; test $? -eq 124"),
    (r"^fourm_ser serve model=\$DEMO asr=\S+ port=8080", r"timeout --signal=INT 60 \g<0>; test $? -eq 124"),
    (
        r"^fourm_ser serve model=\$DEMO +#",
        "fourm_ser serve model=$DEMO &> serve.log & "
        "until curl --silent --output /dev/null http://127.0.0.1:7860/; do sleep 1; done #",
    ),
    (r"^curl ", "curl --fail-with-body "),
]


def pages() -> list[Path]:
    """README and the pages of docs/, in the order of their contents."""
    contents = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    listed = [ROOT / "docs" / name for name in re.findall(r"\w+\.md", contents)]
    return [ROOT / "README.md", *(page for page in listed if page.is_file())]


def commands(page: str) -> list[str]:
    """The commands of a page's blocks of bash, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.S | re.M)
    return [line for block in blocks for line in re.split(r"(?<!\\)\n", block.strip()) if line.strip()]


def typed(command: str) -> str:
    """What is typed for a command."""
    for pattern, others in TYPED:
        command = re.sub(pattern, others, command, flags=re.S)
    return command


class Shell:
    """A shell that goes on from command to command, in a folder whose parent is its home."""

    def __init__(self, folder: Path, hub: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TERM", "USER")}
        cache = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True)
        own = {"HOME": str(folder.parent), "PIP_CACHE_DIR": cache.stdout.strip()}
        self.output = folder.parent / "output"
        self.process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**kept, **own, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_walkthrough", "HF_HUB_DISABLE_XET": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def type(self, command: str) -> tuple[int, list[str]]:
        """Type a command; returns its exit code and the lines that it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{{ {command}\n}} > '{self.output}' 2>&1 < /dev/null\necho $?\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, self.output.read_text(errors="replace").splitlines()

    def close(self) -> None:
        """End what still runs in it."""
        self.type("kill $(jobs -p)")
        self.process.communicate()


def main() -> None:
    """Clone, type and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="without: README.md and all of docs/")
    parser.add_argument("--without", action="append", default=[], metavar="COMMAND", help="leave a command out")
    options = parser.parse_args()
    if missing := [str(page) for page in options.pages if not page.is_file()]:
        parser.error(f"{', '.join(missing)}: no such page.")
    lines = [line for page in options.pages or pages() for line in commands(page.read_text(encoding="utf-8"))]
    once: dict[str, str] = {}
    for line in (*(() if lines[0].startswith(FIRST[0]) else FIRST), *lines):
        once.setdefault(re.sub(r"\s+#.*", "", line), line)
    hub, failed = Hub(), 0
    with tempfile.TemporaryDirectory() as home:
        clone = Path(home) / "fourm_ser"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        places.fill(hub, Path(home) / "hub")
        places.write(Path(home))
        shell = Shell(clone, hub.url)
        for number, command in enumerate(once.values()):
            if any(command.startswith(left_out) for left_out in options.without):
                continue
            if "@v1" in command:
                hub.tag("me/my-model", "v1")
            started = time.monotonic()
            code, told = shell.type(typed(command))
            changed = "" if typed(command) == command else f"\n      typed: {typed(command)}"
            print(f"{number:3} {time.monotonic() - started:6.1f} s, exit code {code}: {command}{changed}", flush=True)
            if code:
                failed += 1
                print("\n".join(f"      | {line}" for line in told[-LAST:]), flush=True)
            if command.startswith(FIRST[0]) and not code:
                places.record(Path(home), clone)
                shell.type("DEMO=$(ls -d outputs/*/* | tail -n 1)")
        shell.close()
    print(f"{failed} commands failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
