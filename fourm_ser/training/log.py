"""The log of a run: on the terminal, and in more detail in the run directory."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourm_ser.distributed import rank
from fourm_ser.errors import InputError
from fourm_ser.terminal import TerminalHandler

# Remarks of Lightning's that are true of every run here, and no news to its user.
EXPECTED = (
    "The number of training batches",  # small corpora have few batches
    "Found .* module.* in eval mode",  # frozen stems
    ".*does not have many workers",  # stored features are read in the training process on purpose
    "`isinstance.treespec, LeafSpec.` is deprecated",
    "It is recommended to use .self.log.*sync_dist=True",  # metrics are those of all processes already
    "Using `DistributedSampler` with the dataloaders",  # the batch sampler gives no utterance twice
    "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler goes on where it was
    "Detected call of `lr_scheduler.step",  # in 16-mixed the first steps find out by how much gradients can be scaled
)


class LogFile(logging.FileHandler):
    """A log on a disk that may be full, which ends no run: it is said once."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say that the file cannot be written."""
        if not self.told:
            self.told = True
            print(f"{self.baseFilename}: cannot be written ({sys.exc_info()[1]}).", file=sys.stderr)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send rank zero's log to the terminal, and in more detail to a file."""
    root = logging.getLogger("fourm_ser")
    if rank() != 0:
        root.addHandler(logging.NullHandler())
        root.propagate = False
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        yield
        return
    terminal = TerminalHandler()
    terminal.setLevel(logging.INFO)
    file = LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before, propagate = root.level, root.propagate
    root.setLevel(logging.DEBUG)
    root.propagate = False
    for handler in (terminal, file):
        root.addHandler(handler)
    lightning = logging.getLogger("pytorch_lightning")
    lightning_level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    except Exception as error:
        trace = None if isinstance(error, InputError) else sys.exc_info()
        file.handle(logging.LogRecord("fourm_ser", logging.ERROR, __file__, 0, str(error), None, trace))
        raise
    finally:
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)
        root.propagate = propagate
        lightning.setLevel(lightning_level)
